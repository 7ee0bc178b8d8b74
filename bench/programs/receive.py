"""Takes bytes from the lab guest's bulk service; prints the seconds it took.

usage: receive.py ADDRESS BYTES
"""

import socket
import sys
import time


def receive(address, size):
    connection = socket.create_connection((address, 5001), 30)
    buffer = bytearray(1 << 20)
    start = time.monotonic()
    connection.sendall(f"SEND {size}\n".encode())
    got = 0
    while got < size:
        count = connection.recv_into(buffer)
        if count == 0:
            sys.exit("the connection ended")
        got += count
    print(time.monotonic() - start)


if __name__ == "__main__":
    receive(sys.argv[1], int(sys.argv[2]))
