"""What passes on an interface, by a filter in the kernel."""
import ctypes, socket, struct


def resets(address, interface):
    """The destination port of each TCP reset that comes from an IPv4 address, for ever."""
    source = struct.unpack("!I", socket.inet_aton(address))[0]
    program = [  # IPv4, from the guest, TCP, RST
        (0x28, 0, 0, 12), (0x15, 0, 8, 0x0800), (0x20, 0, 0, 26), (0x15, 0, 6, source), (0x30, 0, 0, 23),
        (0x15, 0, 4, 6), (0xB1, 0, 0, 14), (0x50, 0, 0, 27), (0x45, 0, 1, 4), (0x06, 0, 0, 96), (0x06, 0, 0, 0),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HL", len(program), ctypes.addressof(code)))  # SO_ATTACH_FILTER
    sock.bind((interface, 3))
    while True:
        frame = sock.recv(256)
        yield struct.unpack("!H", frame[14 + 4 * (frame[14] & 15):][2:4])[0]
