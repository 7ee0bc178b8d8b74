extension Machine {
  public func save() throws(MachineError) -> [UInt8] { throw .wrongPhase("saving is not built in yet") }
  public func restore(_ state: [UInt8]) throws(MachineError) { throw .wrongPhase("restoring is not built in yet") }
}
