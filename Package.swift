// swift-tools-version: 6.2
import PackageDescription

let settings: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .strictMemorySafety(),
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("InternalImportsByDefault"),
  .enableUpcomingFeature("MemberImportVisibility"),
]

// Rooms, lowest first: each may import those above it in this list, never below (docs/architecture.md).
let package = Package(
  name: "MiniVMM",
  products: [.executable(name: "minivmm", targets: ["CLI"])],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
  ],
  targets: [
    .systemLibrary(
      name: "CSeccomp", path: "Sources/CSeccomp", pkgConfig: "libseccomp",
      providers: [.apt(["libseccomp-dev"])]),
    .systemLibrary(
      name: "CNettle", path: "Sources/CNettle", pkgConfig: "nettle", providers: [.apt(["nettle-dev"])]),
    .target(name: "CLinux", path: "Sources/CLinux"),
    .target(name: "CKVM", path: "Sources/CKVM"),
    .target(name: "StateCodec", path: "Sources/StateCodec", swiftSettings: settings),
    .target(name: "VirtioLayout", path: "Sources/VirtioLayout", swiftSettings: settings),
    .target(
      name: "GuestMemory", dependencies: ["CLinux"], path: "Sources/GuestMemory",
      swiftSettings: settings),
    .target(
      name: "Devices", dependencies: ["GuestMemory", "StateCodec", "VirtioLayout", "CLinux"],
      path: "Sources/Devices", swiftSettings: settings),
    .target(
      name: "Replication",
      dependencies: ["StateCodec", "CLinux", "CNettle"], path: "Sources/Replication", swiftSettings: settings),
    // Measures what comparing costs: scripts and tests do not need it.
    .executableTarget(
      name: "comparator-bench", dependencies: ["Replication"], path: "bench/programs/comparator",
      swiftSettings: settings),
    .target(
      name: "MiniVMM", dependencies: ["Devices", "GuestMemory", "StateCodec", "CKVM", "CLinux", "CSeccomp"],
      path: "Sources/MiniVMM", swiftSettings: settings),
    .target(
      name: "Pair", dependencies: ["Replication", "MiniVMM", "Devices", "GuestMemory", "VirtioLayout", "CLinux"],
      path: "Sources/Pair",
      swiftSettings: settings),
    .executableTarget(
      name: "CLI",
      dependencies: [
        "Pair", "Replication", "MiniVMM", "Devices", "GuestMemory", "StateCodec", "CLinux",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Logging", package: "swift-log"),
      ],
      path: "Sources/CLI", swiftSettings: settings),
    .target(name: "CHarness", path: "Tests/CHarness"),
    .target(
      name: "Harness", dependencies: ["CHarness"], path: "Tests/Harness",
      exclude: ["relay.py", "clients.py", "capture.py", "callers.py", "server.py", "README.md"]),
    .executableTarget(name: "campaign", dependencies: ["Harness"], path: "Tests/Campaign"),
    .testTarget(name: "HarnessTests", dependencies: ["Harness"], path: "Tests/HarnessTests"),
    .testTarget(
      name: "IntegrationTests", dependencies: ["Harness"], path: "Tests/IntegrationTests"),
    .target(name: "CTestSupport", path: "Tests/CTestSupport"),
    .testTarget(
      name: "GuestMemoryTests", dependencies: ["GuestMemory", "StateCodec", "Harness"],
      path: "Tests/GuestMemoryTests", swiftSettings: settings),
    .testTarget(
      name: "DeviceTests",
      dependencies: [
        "Pair", "MiniVMM", "Devices", "GuestMemory", "StateCodec", "VirtioLayout", "CLinux", "CTestSupport", "Harness",
      ],
      path: "Tests/DeviceTests", swiftSettings: settings),
    .testTarget(
      name: "MiniVMMTests",
      dependencies: ["MiniVMM", "Devices", "GuestMemory", "StateCodec", "CLinux", "CKVM", "Harness"],
      path: "Tests/MiniVMMTests", swiftSettings: settings),
    .testTarget(
      name: "PairTests",
      dependencies: [
        "Pair", "Replication", "MiniVMM", "Devices", "GuestMemory", "StateCodec", "VirtioLayout", "CLinux",
        "CTestSupport", "Harness",
      ],
      path: "Tests/PairTests", swiftSettings: settings),
    .testTarget(
      name: "ReplicationTests",
      dependencies: ["Replication", "StateCodec", "CLinux"],
      path: "Tests/ReplicationTests", swiftSettings: settings),
  ]
)
