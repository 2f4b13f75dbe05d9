"""What the chief and the workers say to one another: two queues in a TensorFlow server.

The chief starts the server. It offers work in one queue, hears of it in the other, and says in a
variable what the work is about. Everything is JSON.
"""

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor

from gpt2 import runtime
from gpt2.cluster import server

N_LEASES = 32  # that wait in the queue for a worker
N_REPORTS = 1000
N_THREADS = 2  # that make calls: a worker's own, and its reporter's
TIMEOUT = 5  # seconds, for calls that should be answered at once


def encode(message):
    """Return a message as bytes."""
    return json.dumps(message).encode('ascii')


def digest(subject):
    """Return a short checksum of a subject, bytes."""
    return hashlib.sha256(subject).hexdigest()[:16]


def as_indices(values):
    """Return a list of whole numbers. Raises ValueError if it is none."""
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError('not a list of indices')
    return values


def start_server(port):
    """Start the server of a chief; return what a Link to it takes. Raises UserError."""
    tf = runtime.import_tensorflow()
    return server.start({'chief': [f'localhost:{port}']}, 'chief', 0,
                        tf.ConfigProto(device_count={'GPU': 0}), 'give another --serve')


class Link:
    """The queues of the chief at a target such as 'grpc://host:port'.

    Its methods raise server.LostError if the chief does not answer; a later call connects again.
    They raise server.EndedError once it has closed the queues.
    """

    def __init__(self, target):
        tf = runtime.import_tensorflow()
        self._threads = ThreadPoolExecutor(N_THREADS)
        with tf.Graph().as_default() as graph, tf.device('/job:chief/task:0/cpu:0'):
            leases = tf.FIFOQueue(N_LEASES, tf.string, [[]], shared_name='leases')
            reports = tf.FIFOQueue(N_REPORTS, tf.string, [[]], shared_name='reports')
            subject = tf.raw_ops.VarHandleOp(dtype=tf.string, shape=[], shared_name='subject')
            self._message = tf.placeholder(tf.string, [])
            self._n = tf.placeholder(tf.int32, [])
            self._describe = tf.raw_ops.AssignVariableOp(resource=subject, value=self._message)
            self._read_subject = tf.raw_ops.ReadVariableOp(resource=subject, dtype=tf.string)
            self._offer, self._n_offered = leases.enqueue(self._message), leases.size()
            self._take = leases.dequeue()
            self._report, self._n_reports = reports.enqueue(self._message), reports.size()
            self._hear = reports.dequeue_many(self._n)
            self._close = leases.close(), reports.close()
        self._client = server.Client(target, graph, TIMEOUT)

    # The chief's side.

    def describe(self, subject):
        """Say what the work is about, a dict."""
        self._run(self._describe, self._encode(subject))

    def room(self):
        """Return how many more leases fit the queue."""
        return N_LEASES - int(self._run(self._n_offered))

    def offer(self, lease):
        """Add a lease to the queue, which must have room."""
        self._run(self._offer, self._encode(lease))

    def hear(self, seconds):
        """Return the reports that have come after so many seconds, as bytes.

        To wait for each one would cost the processor more, with many workers.
        """
        time.sleep(seconds)
        n = int(self._run(self._n_reports))
        return self._run(self._hear, {self._n: n}).tolist() if n else []

    def close(self):
        """Tell everybody who asks that the work has ended."""
        self._run(self._close)

    # The workers' side.

    def subject(self):
        """Return what the work is about, bytes."""
        return self._run(self._read_subject)

    def take(self, timeout):
        """Return the next lease, bytes, or None if there is none for so many seconds."""
        try:
            return self._run(self._take, {}, timeout)
        except server.LateError:
            return None

    def report(self, report):
        """Tell the chief something, a dict."""
        self._run(self._report, self._encode(report))

    def _encode(self, message):
        return {self._message: encode(message)}

    def _run(self, fetches, feeds=None, timeout=None):
        # In another thread: Ctrl-C, while TensorFlow makes an exception, would crash it.
        return self._threads.submit(self._client.run, fetches, feeds, timeout).result()
