"""Listens at TCP ARGV[1]:ARGV[2] for whoever echoes: sends pieces of random length and contents on the one connection, one after the
other, and says `exchange N` for each that came back as it was. Ends when one does not, or the connection does."""
import random, socket, sys

chance = random.Random(1)
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
sock, peer = listener.accept()
sock.settimeout(10)
print("connected", peer[0], flush=True)
for number in range(1, 1_000_000):
    piece = chance.randbytes(chance.choice([1, 10, 100, 1000, 20000]))
    sock.sendall(piece)
    back = b""
    while len(back) < len(piece):
        part = sock.recv(len(piece) - len(back))
        if not part:
            sys.exit("closed after %d" % number)
        back += part
    if back != piece:
        sys.exit("changed in %d" % number)
    print("exchange %d;" % number, flush=True)
