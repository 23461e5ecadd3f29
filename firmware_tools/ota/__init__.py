"""Updates over MQTT: the board pulls a release in blocks; a command and a report drive it."""
