"""A small model in the official files, and an HTTP server for it that can misbehave.

The server does what Azure's blob storage does: HEAD, Range and If-Range, ETag, Content-Length and
Content-MD5 (of the part, in a response to a Range request). Each of these can be switched off, and
the next responses for a file can be given faults.
"""

import base64
import collections
import functools
import gzip
import hashlib
import http.server
import json
import random
import re
import socket
import struct
import threading
import time

HPARAMS = {'n_vocab': 300, 'n_ctx': 32, 'n_embd': 96, 'n_head': 3, 'n_layer': 4}
WEIGHTS = 'model.ckpt.data-00000-of-00001'
FILES = ('checkpoint', 'encoder.json', 'hparams.json', WEIGHTS, 'model.ckpt.index',
         'model.ckpt.meta', 'vocab.bpe')


def small_model(seed=0, hparams=HPARAMS, vocabulary=None):
    """Return a dict: the name of each of the seven files -> its bytes.

    Args:
      vocabulary: the bytes of encoder.json and vocab.bpe; by default something small.
    """
    rng = random.Random(seed)

    def noise(size):
        return rng.getrandbits(8 * size).to_bytes(size, 'little')

    vocab, ctx, embd, layer = (hparams[key] for key in ('n_vocab', 'n_ctx', 'n_embd', 'n_layer'))
    parameters = (vocab + ctx + 2) * embd + layer * (12 * embd ** 2 + 13 * embd)
    encoder, bpe = vocabulary or (b'{"a": 0, "b": 1}', b'#version: 0.2\na b\n')
    return {
        'checkpoint': b'model_checkpoint_path: "model.ckpt"\n'
                      b'all_model_checkpoint_paths: "model.ckpt"\n',
        'encoder.json': encoder,
        'hparams.json': json.dumps(hparams).encode(),
        WEIGHTS: noise(4 * parameters),
        'model.ckpt.index': noise(5000),
        'model.ckpt.meta': noise(400000),
        'vocab.bpe': bpe,
    }


@functools.lru_cache(64)
def etag(data):
    return f'"{hashlib.sha1(data).hexdigest()}"'


@functools.lru_cache(64)
def md5(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode()


Request = collections.namedtuple('Request', 'method name range if_range status')


class Answer:
    """What the server is going to send. A fault is a function that changes it."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body
        self.length = len(body)   # Content-Length, None for none
        self.chunked = False
        self.cut = None           # bytes of the body after which to stop
        self.ending = 'close'     # what happens then: close, reset, or stall
        self.slow_header = 0      # bytes of a header that is sent byte by byte
        self.raw = None           # bytes to send instead of all this


class ModelServer(http.server.ThreadingHTTPServer):
    """Serves models {size: {name: bytes}} at url/size/name on its own thread."""

    daemon_threads = True

    def __init__(self, models):
        super().__init__(('127.0.0.1', 0), Handler)
        self.models = models
        self.log = []             # Requests with the status of the response
        self.heads = self.ranges = self.if_range = self.etags = self.md5s = self.lengths = True
        self.dates = False        # Last-Modified
        self.piece_pause = 0      # seconds after each 16 KiB
        self.faults = collections.defaultdict(list)
        self.closing = threading.Event()

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}'

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={'poll_interval': 0.01}).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.shutdown()
        self.server_close()

    def inject(self, name, *faults, method='GET', always=False):
        """Give faults to the next responses for a file, or always the same one."""
        self.faults[method, name] = list(faults) * (1000 if always else 1)

    def requests(self, method, name=None):
        return [r for r in self.log if r.method == method and name in (None, r.name)]

    def handle_error(self, request, client_address):
        pass  # clients are killed, which is not an error of the server


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True  # the body follows the headers at once

    def do_GET(self):
        self.respond()

    do_HEAD = do_GET

    def respond(self):
        size, _, name = self.path.lstrip('/').partition('/')
        answer = self.answer(self.server.models.get(size, {}).get(name))
        faults = self.server.faults[self.command, name]
        if faults:
            faults.pop(0)(answer)
        self.server.log.append(Request(self.command, name, self.headers['Range'],
                                       self.headers['If-Range'], answer.status))
        self.send(answer)

    def answer(self, data):
        """Return the Answer without faults, with the abilities that are switched on."""
        server = self.server
        if data is None:
            return Answer(404, {}, b'')
        if self.command == 'HEAD' and not server.heads:
            return Answer(405, {}, b'')
        date = 'Wed, 21 Oct 2015 07:28:00 GMT'
        headers = {'Content-Type': 'application/octet-stream'}
        if server.etags:
            headers['ETag'] = etag(data)
        if server.dates:
            headers['Last-Modified'] = date
        start = re.match(r'bytes=(\d+)-$', self.headers['Range'] or '')
        valid = not server.if_range or self.headers['If-Range'] in (None, etag(data), date)
        status, body = 200, data
        if start and server.ranges and valid:
            first = int(start.group(1))
            if first >= len(data):
                return Answer(416, {'Content-Range': f'bytes */{len(data)}'}, b'')
            status, body = 206, data[first:]
            headers['Content-Range'] = f'bytes {first}-{len(data) - 1}/{len(data)}'
        if server.md5s:
            headers['Content-MD5'] = md5(body)
        answer = Answer(status, headers, body)
        if not server.lengths:
            answer.length, answer.chunked = None, True
        return answer

    def send(self, answer):
        if self.command == 'HEAD' and answer.cut is not None:
            self.close_connection = True
            return
        if answer.raw is not None:
            self.close_connection = True
            self.wfile.write(answer.raw)
            return
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, value)
        if answer.chunked:
            self.send_header('Transfer-Encoding', 'chunked')
        elif answer.length is not None:
            self.send_header('Content-Length', str(answer.length))
        else:
            self.close_connection = True
        if answer.slow_header:
            self.flush_headers()
            for byte in b'Slow: ' + b'x' * answer.slow_header + b'\r\n':
                self.wfile.write(bytes([byte]))
                time.sleep(0.02)
        self.end_headers()
        if self.command == 'HEAD':
            return
        self.send_body(answer.body[:answer.cut], answer.chunked)
        if answer.cut is None:
            if answer.chunked:
                self.wfile.write(b'0\r\n\r\n')
            return
        self.close_connection = True
        if answer.ending == 'stall':
            self.server.closing.wait(60)
        if answer.ending == 'reset':
            # Without time to linger, closing sends a reset (RST).
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            self.connection.close()

    def send_body(self, body, chunked):
        for i in range(0, len(body), 2 ** 14):
            piece = body[i:i + 2 ** 14]
            self.wfile.write(b'%x\r\n%s\r\n' % (len(piece), piece) if chunked else piece)
            if self.server.piece_pause:
                time.sleep(self.server.piece_pause)

    def log_message(self, *_):
        pass


# Faults

def broken(ending, after=589824):
    """The body stops after some bytes: the connection is closed, is reset, or stalls.

    HEAD, which has no body, gets no response.
    """
    def fault(answer):
        answer.cut, answer.ending = min(after, max(0, len(answer.body) - 1)), ending
    return fault


def status(code, **headers):
    def fault(answer):
        answer.status, answer.body, answer.length, answer.cut = code, b'', 0, None
        answer.headers = {key.replace('_', '-'): value for key, value in headers.items()}
    return fault


def flip(answer):
    """One bit of the body differs."""
    middle = len(answer.body) // 2
    answer.body = b'%s%c%s' % (answer.body[:middle], answer.body[middle] ^ 4,
                               answer.body[middle + 1:])


def shorten(answer):
    """A body that is too short, with the Content-Length that it has."""
    answer.body = answer.body[:len(answer.body) // 2]
    answer.length = len(answer.body)


def lengthen(answer):
    """More bytes than the file has, without a Content-Length."""
    answer.body += bytes(1000000)
    answer.length, answer.chunked = None, True


def page(content_type='text/html; charset=utf-8'):
    """A web page instead of the file, like the login page of a network."""
    def fault(answer):
        answer.status = 200
        answer.headers = {'Content-Type': content_type}
        answer.body = b'<!DOCTYPE html><title>Welcome to our hotel</title>'
        answer.length = len(answer.body)
    return fault


def compress(answer):
    """gzip, which was not requested."""
    answer.headers['Content-Encoding'] = 'gzip'
    answer.body = gzip.compress(answer.body)
    answer.length = len(answer.body)


def no_length(answer):
    """Neither Content-Length nor chunks: the body ends where the connection does."""
    answer.length, answer.chunked = None, False


def wrong_range(answer):
    """A response to a Range request that begins somewhere else."""
    answer.headers['Content-Range'] = re.sub(r'bytes \d+', 'bytes 7',
                                             answer.headers['Content-Range'])


def slow_header(answer):
    """A header takes seconds, byte by byte, so that no single read times out."""
    answer.slow_header = 150


def raw(data):
    """Some bytes that need not be HTTP, and the end of the connection."""
    def fault(answer):
        answer.raw = data
    return fault


def chunks(data):
    """A chunked body in these bytes, which need not be well-formed."""
    return raw(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n' + data)
