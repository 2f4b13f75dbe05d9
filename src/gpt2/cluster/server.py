"""The TensorFlow server of a process, and sessions on those of other machines."""

import ctypes

from gpt2 import runtime
from gpt2.errors import UserError


class LostError(Exception):
    """The server does not answer."""


class LateError(LostError):
    """A call has not been answered in time."""


class EndedError(Exception):
    """The server has closed the queue."""


def start(jobs, job, index, config, advice):
    """Start the server of a task of a job, and return its target, which a session takes.

    It listens on all addresses of the machine, and knows no password.

    Args:
      jobs: the addresses of all tasks by the names of their jobs.
      config: a tf.ConfigProto.
      advice: what to do if another program uses the port.

    Raises:
      UserError: the port cannot be opened.
    """
    tf = runtime.import_tensorflow()
    try:
        with runtime.silent_stderr():
            server = tf.train.Server(jobs, job, index, config=config)
    except tf.errors.OpError:
        port = jobs[job][index].rpartition(':')[2]
        raise UserError(f'port {port} cannot be opened; another program may use it: {advice}')
    # Never deleted: TensorFlow 1 would print an error at exit.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))
    return server.target


class Client:
    """A session of a graph on the server at a target such as 'grpc://host:port'.

    After an error, the next call connects again.
    """

    def __init__(self, target, graph, timeout, device_filters=()):
        """Args: timeout: in seconds, for calls that should be answered at once."""
        tf = runtime.import_tensorflow()
        self._target, self._graph, self._timeout = target, graph, timeout
        self._config = tf.ConfigProto(operation_timeout_in_ms=int(1000 * timeout),
                                      device_filters=device_filters)
        self._session = None

    def run(self, fetches, feeds, timeout=None):
        """As tf.Session.run, within so many seconds. Raises LostError and EndedError."""
        tf = runtime.import_tensorflow()
        try:
            if self._session is None:
                self._session = tf.Session(self._target, self._graph, config=self._config)
            return self._session.run(fetches, feeds, options=tf.RunOptions(
                timeout_in_ms=int(1000 * (timeout or self._timeout))))
        except (tf.errors.OutOfRangeError, tf.errors.CancelledError):
            raise EndedError
        except tf.errors.DeadlineExceededError:
            raise LateError
        except tf.errors.OpError:
            self._session = None
            raise LostError
