"""A board for notes: each host writes its own, the chief reads all, the others read the chief's.

A note is a JSON object in a variable of the chief's server. It stays until its host writes another
one, so nothing is lost when a call fails, or when a host is started anew.
"""

import json

from gpt2 import files, runtime
from gpt2.cluster.server import Client, EndedError, LostError

JOB = 'worker'  # that all hosts are tasks of
TIMEOUT = 3  # seconds, for calls that should be answered at once


class Board:
    """The notes of n hosts, as host `index` sees them; `target` is the chief's server."""

    def __init__(self, target, n, index):
        tf = runtime.import_tensorflow()
        self._is_clear = index > 0
        with tf.Graph().as_default() as graph, tf.device(f'/job:{JOB}/task:0/cpu:0'):
            notes = [tf.raw_ops.VarHandleOp(dtype=tf.string, shape=[], shared_name=f'note-{i}')
                     for i in range(n)]
            self._note = tf.placeholder(tf.string, [])

            def write(variable):
                return tf.raw_ops.AssignVariableOp(resource=variable, value=self._note)

            self._write, self._clear = write(notes[index]), list(map(write, notes))
            with tf.control_dependencies([self._write]):
                self._read = [tf.raw_ops.ReadVariableOp(resource=variable, dtype=tf.string)
                              for variable in (notes[:1] if index else notes)]

        # Without the filter, the session would wait until all hosts are there.
        self._client = Client(target, graph, TIMEOUT, [f'/job:{JOB}/task:0'])

    def exchange(self, note):
        """Write this host's note, a dict; return those to read, in order. Raises LostError.

        The chief makes all notes empty first; until then nothing can be read.
        """
        try:
            if not self._is_clear:
                self._client.run(self._clear, {self._note: '{}'})
                self._is_clear = True
            texts = self._client.run(self._read, {self._note: json.dumps(note)})
            return [files.parse_object(text) for text in texts]
        except (EndedError, ValueError):  # a note of somebody else
            raise LostError
