"""mailqueue-runner's programs, files and Python interface, on outmail."""
