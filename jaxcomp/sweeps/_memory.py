"""How much memory is free."""

import jax

_UNKNOWN = 1 << 31  # bytes, where nobody says


def free_memory(device: jax.Device) -> int:
    """Bytes that are free on a device; of a CPU, on the host."""
    said = device.memory_stats() if device.platform != "cpu" else None
    if said and "bytes_limit" in said:
        return said["bytes_limit"] - said.get("bytes_in_use", 0)
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):  # no Linux
        return _UNKNOWN
