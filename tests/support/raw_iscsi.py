"""An initiator made of literal bytes, for saying to a target what no real initiator would.

It shares no code with ``iscsi/``: offsets and values are those of RFC 7143 section 11, written out.
"""

from __future__ import annotations

import itertools
import socket
import struct
from dataclasses import dataclass, field

BHS = 48
TIMEOUT_S = 60.0

# Opcodes, RFC 7143 section 11.1.1 (without the immediate bit, 0x40).
NOP_OUT, SCSI_COMMAND, TASK_MANAGEMENT, LOGIN, TEXT, DATA_OUT, LOGOUT = 0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
NOP_IN, SCSI_RESPONSE, TASK_MANAGEMENT_RESPONSE, LOGIN_RESPONSE = 0x20, 0x21, 0x22, 0x23
TEXT_RESPONSE, DATA_IN, R2T, REJECT = 0x24, 0x25, 0x31, 0x3F

_QUALIFIERS = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Answer:
    """One PDU from the target: its 48 bytes, and its data segment without padding."""

    header: bytes
    data: bytes

    @property
    def opcode(self) -> int:
        return self.header[0] & 0x3F


def pdu(
    opcode: int,
    *,
    flags: int = 0x80,
    specific: bytes = b"",
    lun: bytes = bytes(8),
    itt: int = 1,
    tail: bytes = b"",
    data: bytes = b"",
) -> bytes:
    """A PDU: ``specific`` are bytes 2-3, ``tail`` bytes 20-47 (padded with zeroes); the data segment is padded to 4."""
    length = len(data).to_bytes(3, "big")
    header = bytes([opcode, flags]) + specific.ljust(2, b"\0") + b"\0" + length + lun + struct.pack(">I", itt)
    return header + tail.ljust(28, b"\0") + data + bytes(-len(data) % 4)


def login_pdu(target: str, *, isid: bytes | None = None, extra: str = "") -> bytes:
    """The one login request that goes straight from the operational stage to full feature phase.

    Each has an ISID of its own unless one is given: the same one again would reinstate the session.
    """
    isid = isid or b"\x80\x12\x34\x56" + next(_QUALIFIERS).to_bytes(2, "big")
    keys = f"InitiatorName=iqn.2026-11.org.twinvol.test:raw\0TargetName={target}\0SessionType=Normal\0{extra}"
    # T=1, CSG=1 (operational), NSG=3 (full feature phase); version 0; ISID in place of the LUN, TSIH 0.
    tail = bytes(4) + struct.pack(">II", 1, 0)
    return pdu(0x40 | LOGIN, flags=0x87, lun=isid + b"\0\0", tail=tail, data=keys.encode())


def data_out(
    itt: int, data: bytes, offset: int, *, ttt: int = 0xFFFFFFFF, data_sn: int = 0, final: bool = True
) -> bytes:
    """A Data-Out of LUN 0."""
    tail = struct.pack(">IIIIII", ttt, 0, 0, 0, data_sn, offset)
    return pdu(DATA_OUT, flags=0x80 if final else 0, itt=itt, tail=tail, data=data)


@dataclass(slots=True)
class RawSession:
    """A TCP connection to a portal. ``login`` brings it to full feature phase."""

    portal: str
    source: str = "127.0.0.1"
    receive_bytes: int | None = None  # of the socket's receive buffer
    sock: socket.socket = field(init=False)
    cmd_sn: int = 1
    exp_stat_sn: int = 0

    def __post_init__(self) -> None:
        host, _, port = self.portal.rpartition(":")
        self.sock = socket.socket()
        if self.receive_bytes is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_bytes)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.bind((self.source, 0))
        self.sock.connect((host, int(port)))

    def __enter__(self) -> RawSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _exactly(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            piece = self.sock.recv(length - len(received))
            if not piece:
                raise EOFError(f"closed after {len(received)} of {length} bytes")
            received += piece
        return received

    def receive(self) -> Answer:
        """The next PDU. EOFError when the target has closed; TimeoutError when it stays silent."""
        header = self._exactly(BHS)
        length = int.from_bytes(header[5:8], "big")
        return Answer(header, self._exactly(length + -length % 4)[:length])

    def is_closed(self) -> bool:
        """Whether the target closes the connection, having read on over whatever it still says."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        return True

    def login(self, target: str, *, isid: bytes | None = None, extra: str = "") -> RawSession:
        """Log in; AssertionError with the status when the target refuses."""
        self.send(login_pdu(target, isid=isid, extra=extra))
        answer = self.receive()
        assert answer.opcode == LOGIN_RESPONSE, answer
        assert answer.header[36:38] == b"\0\0", f"login status {answer.header[36:38].hex()}"
        self.exp_stat_sn = struct.unpack(">I", answer.header[24:28])[0] + 1
        return self

    def ping(self, itt: int = 0x77) -> None:
        """A NOP-Out that has to be answered by its NOP-In: the session is alive and in order."""
        data = b"are you there"
        self.send(
            pdu(
                0x40 | NOP_OUT,
                itt=itt,
                tail=struct.pack(">III", 0xFFFFFFFF, self.cmd_sn, self.exp_stat_sn),
                data=data,
            )
        )
        answer = self.receive()
        while answer.opcode == NOP_IN and answer.header[16:20] == b"\xff" * 4:  # the target's own ping
            answer = self.receive()
        assert answer.opcode == NOP_IN, f"opcode {answer.opcode:02x}"
        assert answer.header[16:20] == struct.pack(">I", itt)
        assert answer.data == data

    def scsi(
        self, cdb: bytes, *, read: int = 0, write: int = 0, data: bytes = b"", itt: int = 0x99, flags: int = 0x80
    ) -> bytes:
        """The bytes of the next numbered SCSI command to LUN 0, not sent. ``flags`` without the direction."""
        flags |= 0x40 if read else 0x20 if write else 0
        tail = struct.pack(">III", read or write, self.cmd_sn, self.exp_stat_sn) + cdb.ljust(16, b"\0")
        self.cmd_sn += 1
        return pdu(SCSI_COMMAND, flags=flags, itt=itt, tail=tail, data=data)

    def command(self, cdb: bytes, *, read_bytes: int = 0, itt: int = 0x99) -> tuple[int, bytes]:
        """A SCSI command without data-out to LUN 0; its status, and its data or its sense."""
        self.send(self.scsi(cdb, read=read_bytes, itt=itt))
        received = b""
        while True:
            answer = self.receive()
            if answer.opcode == DATA_IN:
                received += answer.data
                if answer.header[1] & 0x01:  # S: status is in this PDU
                    return answer.header[3], received
            elif answer.opcode == SCSI_RESPONSE:
                return answer.header[3], answer.data[2:] if answer.header[3] else received
            else:
                assert answer.opcode == NOP_IN, f"opcode {answer.opcode:02x}"
