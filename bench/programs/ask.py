"""Asks the lab guest's store every millisecond, whatever has been answered.

usage: ask.py ADDRESS SECONDS
Prints a line for each answer, in order: when it was asked for and when it came (CLOCK_MONOTONIC).
"""

import socket
import sys
import threading
import time


def ask(address, seconds):
    connection = socket.create_connection((address, 6379), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end = time.monotonic() + seconds
    asked, answered = [], []

    def send():
        while time.monotonic() < end:
            asked.append(time.monotonic())
            connection.sendall(b"INCR n\r\n")
            time.sleep(0.001)
        connection.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    rest = b""
    while time.monotonic() < end + 1:
        connection.settimeout(2)
        try:
            data = connection.recv(65536)
        except TimeoutError:
            break
        if not data:
            break
        now = time.monotonic()
        *lines, rest = (rest + data).split(b"\r\n")
        for line in lines:
            answered.append(now)
            if line != b":%d" % len(answered):
                sys.exit(f"{line} instead of {len(answered)}")
    for times in zip(asked, answered):
        print("%.6f %.6f" % times)
    if len(answered) < len(asked):
        sys.exit(f"{len(asked) - len(answered)} of {len(asked)} were not answered")


if __name__ == "__main__":
    ask(sys.argv[1], float(sys.argv[2]))
