"""The TensorFlow server that a process starts so that other machines can reach it."""

import ctypes

from gpt2 import runtime
from gpt2.errors import UserError


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
