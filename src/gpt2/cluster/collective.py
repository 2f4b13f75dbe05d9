"""Sums over all hosts, by TensorFlow's collective operations: a ring, over gRPC, or NCCL on GPUs.

Every host must run the same operations in the same order. Each waits in them for the others.
"""

import tensorflow.compat.v1 as tf

BUCKET = 2**24  # bytes of gradients that are sent together
GRADIENTS, NUMBERS = 1, 2  # groups: of the devices that have the gradients, and of processors
UPDATE, AGREE, BROADCAST = 1, 2, 3  # numbers of what a session runs


class Alone:
    """What one host does without others."""

    run_options = None

    def average(self, gradients):
        """Return the gradients."""
        return gradients

    def broadcast(self, session, variables):
        """Do nothing."""

    def agree(self, session, loss, stop):
        """Return both values."""
        return loss, stop


class Collective:
    """The same with others: `run_options` are for the session call that needs the gradients."""

    def __init__(self, hosts):
        self._n, self._is_chief, self._n_operations = hosts.n, hosts.is_chief, 0
        self.run_options = run_options(UPDATE)
        with tf.device('/cpu:0'):
            self._values = tf.placeholder(tf.float32, [2])
            self._sums = self._reduce(self._values, NUMBERS)

    def average(self, gradients):
        """Return the means over all hosts of gradients, float32 tensors of known shapes."""
        means, before = [], []
        for bucket in buckets(gradients):
            with tf.control_dependencies(before):  # in the same order everywhere
                total = self._reduce(tf.concat([tf.reshape(part, [-1]) for part in bucket], 0),
                                     GRADIENTS)
            before = [total]
            parts = tf.split(total / self._n, [part.shape.num_elements() for part in bucket])
            means += [tf.reshape(part, like.shape) for part, like in zip(parts, bucket)]
        return means

    def broadcast(self, session, variables):
        """Give variables of a session the values that they have on the chief."""
        with tf.device('/cpu:0'):
            session.run([self._copy(variable) for variable in variables],
                        options=run_options(BROADCAST))

    def agree(self, session, loss, stop):
        """Return the mean of all losses, and whether any host is to stop."""
        loss, stop = session.run(self._sums, {self._values: [loss, stop]},
                                 options=run_options(AGREE)) / [self._n, 1]
        return float(loss), stop > 0

    def _reduce(self, value, group):
        return tf.raw_ops.CollectiveReduce(
            input=value, group_size=self._n, group_key=group, instance_key=self._next_key(),
            merge_op='Add', final_op='Id', subdiv_offsets=[0])

    def _copy(self, variable):
        """Return the operation that sends a variable of the chief, or receives one."""
        options = dict(group_size=self._n, group_key=NUMBERS, instance_key=self._next_key(),
                       shape=variable.shape)
        if self._is_chief:
            return tf.raw_ops.CollectiveBcastSend(input=variable.read_value(), **options).op
        return variable.assign(
            tf.raw_ops.CollectiveBcastRecv(T=variable.dtype.base_dtype, **options)).op

    def _next_key(self):
        """Return a number that names an operation on all hosts."""
        self._n_operations += 1
        return self._n_operations


def run_options(number):
    """Return the options of a session call with collective operations."""
    return tf.RunOptions(experimental=tf.RunOptions.Experimental(collective_graph_key=number))


def buckets(tensors):
    """Divide float32 tensors into lists of BUCKET bytes at most; a larger tensor is alone."""
    lists, n_bytes = [], 0
    for tensor in tensors:
        size = 4 * tensor.shape.num_elements()
        if not lists or n_bytes + size > BUCKET:
            lists.append([])
            n_bytes = 0
        lists[-1].append(tensor)
        n_bytes += size
    return lists
