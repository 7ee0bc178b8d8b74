"""Reads one thing again and again on some connections: an item of memcached's, or a small file of nginx's.

usage: fetch.py memcached|nginx ADDRESS CONNECTIONS REQUESTS
Prints one JSON object; latencies in microseconds. Meant for guests that answer a hundred times a second.
"""

import json
import socket
import sys
import threading
import time

VALUE = b"v" * 64
STORE = b"set key 0 0 %d\r\n%s\r\n" % (len(VALUE), VALUE)
HIT = b"VALUE key 0 %d\r\n%s\r\nEND\r\n" % (len(VALUE), VALUE)


def exactly(stream, wanted):
    got = stream.read(len(wanted))
    if got != wanted:
        sys.exit(f"{got!r} instead of {wanted!r}")


def memcached(address):
    connection = socket.create_connection((address, 11211), 20)
    stream = connection.makefile("rb")

    def get():
        connection.sendall(b"get key\r\n")
        exactly(stream, HIT)
    connection.sendall(STORE)
    exactly(stream, b"STORED\r\n")
    return get


def nginx(address):
    connection = socket.create_connection((address, 80), 20)
    stream = connection.makefile("rb")

    def get():
        connection.sendall(b"GET /index.html HTTP/1.1\r\nHost: guest\r\n\r\n")
        exactly(stream, b"HTTP/1.1 200 OK\r\n")
        length = 0
        while (line := stream.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if not length or len(stream.read(length)) != length:
            sys.exit("nginx sent no whole file")
    return get


def main():
    server = {"memcached": memcached, "nginx": nginx}[sys.argv[1]]
    connections, each = int(sys.argv[3]), max(1, int(sys.argv[4]) // int(sys.argv[3]))
    gets = [server(sys.argv[2]) for _ in range(connections)]
    taken = []

    def work(get):
        for _ in range(each):
            start = time.monotonic()
            get()
            taken.append((time.monotonic() - start) * 1e6)
    threads = [threading.Thread(target=work, args=(get,)) for get in gets]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - start
    if len(taken) < connections * each:
        sys.exit(f"{connections * each - len(taken)} of {connections * each} were not answered")
    taken.sort()
    print(json.dumps({"per_second": len(taken) / seconds, "p50": taken[len(taken) // 2], "p99": taken[len(taken) * 99 // 100],
                      "max": taken[-1], "replies": len(taken)}))


if __name__ == "__main__":
    main()
