import Pair
import Testing

@Suite struct Faults {
  @Test func pointActionArgumentAndPassage_areRead() throws {
    let plain = try #require(Fault("cut=kill"))
    #expect(plain.point == .cut && plain.action == .kill && plain.passage == 1)
    let whole = try #require(Fault("takeoverDisks=delay:250@3"))
    #expect(whole.point == .takeoverDisks && whole.action == .delay(250) && whole.passage == 3)
  }

  @Test func everyPointTakesEveryAction() {
    for point in FaultPoint.allCases {
      for action in ["kill", "stop", "cut", "delay:1", "corrupt", "short", "fullDisk"] {
        #expect(Fault("\(point.rawValue)=\(action)@2") != nil)
      }
    }
  }

  @Test(arguments: [
    "", "cut", "cut=", "=kill", "nowhere=kill", "cut=explode", "cut=kill:5", "cut=delay", "cut=delay:", "cut=delay:-1",
    "cut=delay:60001", "cut=kill@", "cut=kill@0", "cut=kill@-1", "cut=kill@x",
  ]) func anythingElse_isRefused(text: String) { #expect(Fault(text) == nil) }
}
