"""TensorBoard's files, read back."""

import struct

from tensorboardX.proto.event_pb2 import Event


def scalars(path):
    """Steps and values by tag, from TensorBoard's records (length, checksum, event, checksum)."""
    found, data = {}, path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found
