"""Relays frames between tap ARGV[1] and the one client of unix stream socket ARGV[2] (4-byte big-endian lengths)."""
import fcntl, os, select, socket, struct, sys

tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH14x", sys.argv[1].encode(), 0x0002 | 0x1000))  # TUNSETIFF: TAP, NO_PI
listener = socket.socket(socket.AF_UNIX)
if os.path.exists(sys.argv[2]):
    os.unlink(sys.argv[2])
listener.bind(sys.argv[2])
listener.listen(1)
peer, _ = listener.accept()
waiting = b""
while True:
    ready, _, _ = select.select([tap, peer], [], [])
    if tap in ready:
        frame = os.read(tap, 65536)
        peer.sendall(struct.pack(">I", len(frame)) + frame)
    if peer in ready:
        received = peer.recv(65536)
        if not received:
            break
        waiting += received
        while len(waiting) >= 4 and len(waiting) - 4 >= struct.unpack(">I", waiting[:4])[0]:
            length = struct.unpack(">I", waiting[:4])[0]
            os.write(tap, waiting[4 : 4 + length])
            waiting = waiting[4 + length :]
