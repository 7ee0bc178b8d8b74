enum Hostile { static func run() {} }
