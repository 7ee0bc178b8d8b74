"""Milliseconds of each of COUNT redis PINGs on one connection, a line each.

usage: ping.py ADDRESS COUNT
"""

import socket
import sys
import time


def ping(address, count):
    connection = socket.create_connection((address, 6379), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(count):
        asked = time.monotonic()
        connection.sendall(b"PING\r\n")
        if connection.recv(100) != b"+PONG\r\n":
            sys.exit("no PONG")
        print("%.3f" % ((time.monotonic() - asked) * 1000))


if __name__ == "__main__":
    ping(sys.argv[1], int(sys.argv[2]))
