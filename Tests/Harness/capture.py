"""What passes on an interface, by a filter in the kernel. As a program, `capture.py INTERFACE` prints each reverse or
gratuitous ARP frame and each unsolicited neighbour advertisement: its kind, whose, and the link address that it names."""
import ctypes, socket, struct, sys


def capture(interface, program):
    """A socket with the frames that a classic BPF program lets pass."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HL", len(program), ctypes.addressof(code)))  # SO_ATTACH_FILTER
    sock.bind((interface, 3))
    return sock


def resets(address, interface):
    """The destination port of each TCP reset that comes from an IPv4 or IPv6 address, for ever."""
    if ":" in address:
        words = struct.unpack("!4I", socket.inet_pton(socket.AF_INET6, address))
        program = [(0x28, 0, 0, 12), (0x15, 0, 13, 0x86DD), (0x30, 0, 0, 20), (0x15, 0, 11, 6)]  # IPv6, TCP
        for number, word in enumerate(words):  # from the guest
            program += [(0x20, 0, 0, 22 + 4 * number), (0x15, 0, 9 - 2 * number, word)]
        program += [(0x30, 0, 0, 67), (0x45, 0, 1, 4), (0x06, 0, 0, 96), (0x06, 0, 0, 0)]  # RST
    else:
        source = struct.unpack("!I", socket.inet_aton(address))[0]
        program = [  # IPv4, from the guest, TCP, RST
            (0x28, 0, 0, 12), (0x15, 0, 8, 0x0800), (0x20, 0, 0, 26), (0x15, 0, 6, source), (0x30, 0, 0, 23),
            (0x15, 0, 4, 6), (0xB1, 0, 0, 14), (0x50, 0, 0, 27), (0x45, 0, 1, 4), (0x06, 0, 0, 96), (0x06, 0, 0, 0),
        ]
    sock = capture(interface, program)
    while True:
        frame = sock.recv(256)
        header = 40 if ":" in address else 4 * (frame[14] & 15)
        yield struct.unpack("!H", frame[14 + header:][2:4])[0]


def announcements(interface):
    """(kind, address, link address) of each announcement of a card, for ever."""
    sock = capture(interface, [  # ARP, reverse ARP, IPv6 with ICMPv6
        (0x28, 0, 0, 12), (0x15, 4, 0, 0x0806), (0x15, 3, 0, 0x8035), (0x15, 0, 3, 0x86DD), (0x30, 0, 0, 20),
        (0x15, 0, 1, 58), (0x06, 0, 0, 256), (0x06, 0, 0, 0),
    ])
    while True:
        frame = sock.recv(256)
        kind = frame[12:14]
        if kind == b"\x80\x35":
            yield "rarp", "-", frame[22:28].hex(":")
        elif kind == b"\x08\x06" and frame[28:32] == frame[38:42]:
            yield "arp", socket.inet_ntoa(frame[28:32]), frame[22:28].hex(":")
        elif kind == b"\x86\xdd" and frame[54] == 136 and not frame[58] & 0x40:
            yield "neighbour", socket.inet_ntop(socket.AF_INET6, frame[62:78]), frame[80:86].hex(":")


if __name__ == "__main__":
    print("capturing", flush=True)
    for announcement in announcements(sys.argv[1]):
        print(*announcement, flush=True)
