"""`python -m keyside.executor`: an executor, set up by KEYSIDE_* variables."""

import signal
import sys
import types

from keyside.executor import functions, logs, recycle
from keyside.executor.health import HealthServer
from keyside.executor.settings import Settings, SettingsError
from keyside.executor.worker import Worker
from keyside.tensorstore.errors import KeysideError

__all__ = ["main", "serve"]


def main() -> int:
    """Run an executor until SIGTERM or SIGINT; return the exit code."""
    try:
        settings = Settings.from_env()
        if not settings.url:
            raise SettingsError("url (KEYSIDE_URL): name the server, such as redis://127.0.0.1:6379")
    except SettingsError as error:
        sys.stderr.write(f"keyside executor: {error}\n")
        return 2
    return serve(settings)


def serve(settings: Settings) -> int:
    """Run an executor until SIGTERM or SIGINT; return the exit code."""
    logs.configure(settings.log_level, settings.log_format)
    try:
        functions.load_modules(settings.functions)
    except ImportError as error:
        sys.stderr.write(f"keyside executor: functions (KEYSIDE_FUNCTIONS): {error}\n")
        return 2
    worker = Worker(settings)

    def stop(_signal: int, _frame: types.FrameType | None) -> None:
        worker.stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    health = None
    try:
        if settings.http_port:
            health = HealthServer(
                settings.http_host,
                settings.http_port,
                metrics=worker.metrics.expose,
                live=worker.why_dead,
                ready=worker.why_unready,
            ).start()
        with recycle.listening() as worker.requests:
            worker.run()
    except KeysideError as error:
        worker.log.error("executor cannot start", error=str(error))
        return 1
    finally:
        if health:
            health.close()
    if worker.stuck:
        recycle.end(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
