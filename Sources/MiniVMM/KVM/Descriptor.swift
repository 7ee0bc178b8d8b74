internal import CKVM
internal import CLinux
internal import Glibc

/// A file descriptor of KVM's, closed when it goes; every ioctl on it becomes a value or a ``KVMError``.
struct Descriptor: ~Copyable, Sendable {
  let raw: CInt

  init(owning raw: CInt) { self.raw = raw }

  deinit { lx_close(raw) }

  /// An ioctl whose argument is a number. Retried when a signal came in between.
  @discardableResult
  func call(_ request: KVMRequest, _ argument: UInt = 0) throws(KVMError) -> CInt {
    while true {
      let result = ckvm_ioctl(raw, request, argument)
      if result >= 0 { return result }
      guard result == -EINTR else { throw .failed(request, errno: -result) }
    }
  }

  /// An ioctl whose argument is a structure, read or written or both.
  @discardableResult
  func call<T: BitwiseCopyable>(_ request: KVMRequest, _ value: inout T) throws(KVMError) -> CInt {
    let result = unsafe withUnsafeMutablePointer(to: &value) { pointer in
      unsafe rawCall(request, pointer)
    }
    guard result >= 0 else { throw .failed(request, errno: -result) }
    return result
  }

  /// An ioctl that fills a structure.
  func get<T: BitwiseCopyable>(_ request: KVMRequest, _ value: consuming T) throws(KVMError) -> T {
    var result = value
    try call(request, &result)
    return result
  }

  /// An ioctl that takes a structure.
  func set<T: BitwiseCopyable>(_ request: KVMRequest, _ value: T) throws(KVMError) {
    var copy = value
    try call(request, &copy)
  }

  /// An ioctl on raw bytes, for structures with unions or of a size only the kernel knows. What the kernel reads of it
  /// goes in, what it wrote comes out.
  func getBytes(_ request: KVMRequest, _ initial: [UInt8]) throws(KVMError) -> [UInt8] {
    var bytes = initial
    let result = unsafe bytes.withUnsafeMutableBytes { unsafe rawCall(request, $0.baseAddress) }
    guard result >= 0 else { throw .failed(request, errno: -result) }
    return bytes
  }

  /// The caller has checked that `bytes` is as long as the kernel reads.
  func setBytes(_ request: KVMRequest, _ bytes: [UInt8]) throws(KVMError) {
    var copy = bytes
    let result = unsafe copy.withUnsafeMutableBytes { unsafe rawCall(request, $0.baseAddress) }
    guard result >= 0 else { throw .failed(request, errno: -result) }
  }

  /// An ioctl on a counted array (`kvm_cpuid2`, `kvm_msrs`, `kvm_msr_list`): a header of 4 or 8 bytes that begins with
  /// the 4-byte count, then the entries, a flexible array that Swift doesn't import. `entries` goes in; what the kernel
  /// left there comes out, with the ioctl's result.
  @discardableResult
  func array<Entry: BitwiseCopyable>(
    _ request: KVMRequest, headerSize: Int = 8, _ entries: [Entry]
  ) throws(KVMError) -> (entries: [Entry], result: CInt) {
    let stride = MemoryLayout<Entry>.stride
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: headerSize + entries.count * stride, alignment: 16)
    defer { unsafe memory.deallocate() }
    unsafe memory.initializeMemory(as: UInt8.self, repeating: 0)
    unsafe memory.storeBytes(of: UInt32(entries.count), as: UInt32.self)
    for (index, entry) in entries.enumerated() {
      unsafe memory.storeBytes(of: entry, toByteOffset: headerSize + index * stride, as: Entry.self)
    }
    let result = unsafe rawCall(request, memory.baseAddress)
    guard result >= 0 else { throw .failed(request, errno: -result) }
    let count = unsafe min(Int(memory.load(as: UInt32.self)), entries.count)
    var filled: [Entry] = []
    filled.reserveCapacity(count)
    for index in 0..<count {
      filled.append(unsafe memory.loadUnaligned(fromByteOffset: headerSize + index * stride, as: Entry.self))
    }
    return (filled, result)
  }

  /// The ioctl's result, or -errno.
  func rawCall(_ request: KVMRequest, _ pointer: UnsafeMutableRawPointer?) -> CInt {
    while true {
      let result = unsafe ckvm_ioctl_pointer(raw, request, pointer)
      if result != -EINTR { return result }
    }
  }
}

extension KVMError {
  static func failed(_ request: KVMRequest, errno: Int32) -> KVMError {
    .failed(operation: unsafe String(cString: ckvm_request_name(request)), errno: errno)
  }
}
