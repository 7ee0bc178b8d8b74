"""Keeps what a guest sends: capture.py INTERFACE SECONDS MOST FILE. Each frame follows its length, four bytes, little-endian."""

import socket
import struct
import sys
import time

ETH_P_ALL = 3
interface, seconds, most, path = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
wire.bind((interface, 0))
wire.settimeout(0.2)
wire.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
frames, end = [], time.monotonic() + seconds
print("ready", flush=True)
while time.monotonic() < end and len(frames) < most:
    try:
        frame, (_, _, kind, *_) = wire.recvfrom(1 << 17)
    except TimeoutError:
        continue
    if kind != socket.PACKET_OUTGOING:  # what the host sends to the guest
        frames.append(frame)
with open(path, "wb") as file:
    for frame in frames:
        file.write(struct.pack("<I", len(frame)) + frame)
print(len(frames))
