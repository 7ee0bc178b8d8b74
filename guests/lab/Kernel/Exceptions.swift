import LabC

/// What boot/stubs.S noted of an exception: u64 values in this order.
@c(lab_exception)
func reportException(_ record: UnsafePointer<UInt64>) -> Never {
  Console.line {
    $0.text("lab: exception vector=")
    $0.decimal(record[0])
    $0.text(" error=")
    $0.hex(record[1])
    $0.text(" rip=")
    $0.hex(record[2])
    $0.text(" cs=")
    $0.hex(record[3])
    $0.text(" rflags=")
    $0.hex(record[4])
    $0.text(" rsp=")
    $0.hex(record[5])
    $0.text(" cr2=")
    $0.hex(record[6])
    $0.text(" rdi=")
    $0.hex(record[13])
  }
  Machine.crashed()
}

@c(lab_assertion)
func reportAssertion(_ message: UnsafePointer<CChar>) {
  message.withMemoryRebound(to: UInt8.self, capacity: 1) { text in
    Console.line {
      $0.text("lab: assertion failed: ")
      $0.raw(text, strlen(message))
    }
    reportCallers()
  }
  Machine.crashed()
}

/// What looks like a return address on the stack: who called, innermost first, with some that called before.
private func reportCallers() {
  let code = text_start_address()..<text_end_address()
  var (at, left) = (cpu_stack_pointer(), 20)
  Console.line {
    $0.text("lab: callers")
    for _ in 0..<400 where left > 0 {
      let word = load64(physical(at))
      if code.contains(word) {
        $0.text(" ")
        $0.hex(word)
        left -= 1
      }
      at += 8
    }
  }
}
