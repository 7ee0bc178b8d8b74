// The machine room.
