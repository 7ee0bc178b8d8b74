"""What passes on an interface, by a filter in the kernel. As a program, `capture.py INTERFACE` prints each reverse or
gratuitous ARP frame and each unsolicited neighbour advertisement: its kind, whose, and the link address that it names."""
import collections, ctypes, socket, struct, sys, time


def capture(interface, program):
    """A socket with the frames that a classic BPF program lets pass."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HL", len(program), ctypes.addressof(code)))  # SO_ATTACH_FILTER
    sock.bind((interface, 3))
    return sock


class Trails:
    """What opens and ends the TCP connections of an address, by segments with SYN, FIN or RST."""

    def __init__(self, address):
        self.six = ":" in address
        self.own = socket.inet_pton(socket.AF_INET6 if self.six else socket.AF_INET, address)
        self.known = {}  # by the other side's port and the address's: who has sent a FIN, and the last of them as text

    def reset(self, frame, now):
        """For a reset that comes from the address: both ports, whether both sides had ended the connection before, and the
        trail; None for other frames."""
        source, target = (frame[22:38], frame[38:54]) if self.six else (frame[26:30], frame[30:34])
        if self.own not in (source, target):
            return None
        segment = frame[14 + (40 if self.six else 4 * (frame[14] & 15)):]
        ports, flags = struct.unpack("!HH", segment[:4]), segment[13]
        sender, ports = ("guest", ports[::-1]) if source == self.own else ("client", ports)
        if ports not in self.known or flags & 2 and sender == "client":
            self.known[ports] = (set(), collections.deque(maxlen=16))
        ended, trail = self.known[ports]
        trail.append("%s %s at %d ms" % (sender, "SYN" if flags & 2 else "RST" if flags & 4 else "FIN", now // 1_000_000))
        if flags & 4:
            return (ports, len(ended) == 2, ", ".join(trail)) if sender == "guest" else None
        if flags & 1:
            ended.add(sender)
        return None


def resets(address, interface):
    """`Trails.reset` of each TCP reset that comes from an IPv4 or IPv6 address, for ever."""
    sock = capture(interface, [  # IPv6, TCP, SYN, FIN or RST
        (0x28, 0, 0, 12), (0x15, 0, 5, 0x86DD), (0x30, 0, 0, 20), (0x15, 0, 3, 6), (0x30, 0, 0, 67), (0x45, 0, 1, 7),
        (0x06, 0, 0, 96), (0x06, 0, 0, 0),
    ] if ":" in address else [  # IPv4
        (0x28, 0, 0, 12), (0x15, 0, 6, 0x0800), (0x30, 0, 0, 23), (0x15, 0, 4, 6), (0xB1, 0, 0, 14), (0x50, 0, 0, 27),
        (0x45, 0, 1, 7), (0x06, 0, 0, 96), (0x06, 0, 0, 0),
    ])
    trails = Trails(address)
    while True:
        found = trails.reset(sock.recv(256), time.monotonic_ns())
        if found:
            yield found


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
