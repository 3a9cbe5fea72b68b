"""What this device and its training use, read with psutil; imported only while something trains.

Rates are by the meter's own readings: psutil remembers by thread, which is of no use in a pool.
"""

import time

import psutil

_MB = 1024 * 1024

Values = dict[str, float]


class LoadMeter:
    """What was used since this object was made; rates are since the last reading."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._network = _network_bytes()
        self._cpu = _cpu_seconds()

    def read(self) -> Values:
        """Return cpu and memory of this machine in percent, the training's own memory and threads, network in bytes."""
        memory, (sent, received) = psutil.virtual_memory(), _network_bytes()
        rss_bytes, num_threads = _of_training()
        return {
            "runtime": round(time.monotonic() - self._started, 1),
            "cpu": self._cpu_percent(),
            "cpu_threads": num_threads,
            "memory": memory.percent,
            "memory_percent": round(100 * rss_bytes / memory.total, 1),
            "memory_rssMB": round(rss_bytes / _MB, 1),
            "memory_availableMB": round(memory.available / _MB, 1),
            "network_sent": max(0, sent - self._network[0]),
            "network_recv": max(0, received - self._network[1]),
            "disk": psutil.disk_usage("/").percent,
        }

    def _cpu_percent(self) -> float:
        (busy_before, total_before), self._cpu = self._cpu, _cpu_seconds()
        busy, total = self._cpu
        return round(100 * (busy - busy_before) / max(total - total_before, 1e-6), 1)


def _network_bytes() -> tuple[int, int]:
    """Return bytes sent and received; 0 where the machine has no network interface (psutil returns None)."""
    counters = psutil.net_io_counters()
    return (counters.bytes_sent, counters.bytes_recv) if counters else (0, 0)


def _cpu_seconds() -> tuple[float, float]:
    """Return busy and total seconds of all cores (psutil.cpu_percent remembers by thread: of no use in a pool)."""
    times = psutil.cpu_times()
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total


def _of_training() -> tuple[int, int]:
    """Return resident bytes and threads of everything that this daemon has started."""
    rss_bytes = num_threads = 0
    for process in psutil.Process().children(recursive=True):
        try:
            with process.oneshot():
                rss_bytes += process.memory_info().rss
                num_threads += process.num_threads()
        except psutil.Error:  # it has just ended
            continue
    return rss_bytes, num_threads
