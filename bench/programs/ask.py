"""Asks the lab guest's store every millisecond, whatever has been answered; prints when answers came (CLOCK_MONOTONIC).

usage: ask.py ADDRESS SECONDS
"""

import socket
import sys
import threading
import time


def ask(address, seconds):
    connection = socket.create_connection((address, 6379), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end = time.monotonic() + seconds

    def send():
        while time.monotonic() < end:
            connection.sendall(b"INCR n\r\n")
            time.sleep(0.001)
        connection.shutdown(socket.SHUT_WR)

    print("asking", flush=True)
    threading.Thread(target=send, daemon=True).start()
    expected, rest = 1, b""
    times = []
    while time.monotonic() < end + 1:
        connection.settimeout(2)
        try:
            data = connection.recv(65536)
        except TimeoutError:
            break
        if not data:
            break
        times.append(time.monotonic())
        *lines, rest = (rest + data).split(b"\r\n")
        for line in lines:
            if line != b":%d" % expected:
                sys.exit(f"{line} instead of {expected}")
            expected += 1
    print(" ".join(f"{each:.6f}" for each in times))


if __name__ == "__main__":
    ask(sys.argv[1], float(sys.argv[2]))
