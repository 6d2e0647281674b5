# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor that answers what no QEMU can be made to"""

import contextlib
import json
import socket
import threading
from typing import Any, Callable, Dict, List, Union

Json = Dict[str, Any]
NO_UUID = '00000000-0000-0000-0000-000000000000'
# Answers to a command, of which the last is repeated, or who makes them
Answers = Union[List[Any], Callable[[Json], Any]]


class Hangs(Exception):
    """There is no answer."""


class HangsUp(Exception):
    """The connection ends in the place of an answer."""


class Fails(Exception):
    """The answer is an error: its class, and its description."""


class FakeMonitor:
    """Serves one client after the other, until it is closed."""

    def __init__(self, path: str, answers: Dict[str, Answers]) -> None:
        """
        Have a monitor at that path.

        The answers are those to each command; those to one with a target go
        by both.
        """
        self.answers = {'query-uuid': [{'UUID': NO_UUID}], **answers}
        # All that was asked
        self.commands: List[str] = []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(path)
        self.socket.listen(1)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        """Serve one client after the other."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.socket.accept()
                with client, contextlib.suppress(OSError, HangsUp):
                    self.talk(client)

    def talk(self, client: socket.socket) -> None:
        """Answer until the client goes."""
        def send(message: Json) -> None:
            # An event in front of each answer is nobody's business
            client.sendall(json.dumps({
                'event': 'STOP', 'timestamp': {
                    'seconds': 1, 'microseconds': 1}}).encode() + b'\r\n')
            client.sendall(json.dumps(message).encode() + b'\r\n')

        client.sendall(b'{"QMP": {"version": {"qemu": {"major": 10,'
                       b' "minor": 2, "micro": 2}, "package": ""},'
                       b' "capabilities": ["oob"]}}\r\n')
        text = ''
        negotiated = False
        while data := client.recv(65536):
            text += data.decode()
            with contextlib.suppress(ValueError):
                while text:
                    request, end = json.JSONDecoder().raw_decode(text)
                    text = text[end:].lstrip()
                    if not negotiated:
                        client.sendall(json.dumps({
                            'return': {}, 'id': request.get('id')}).encode()
                            + b'\r\n')
                        negotiated = True
                        continue
                    with contextlib.suppress(Hangs):
                        send({**self.answer(request), 'id': request.get('id')})

    def answer(self, request: Json) -> Json:
        """Return the next answer to the command."""
        command = request['execute']
        self.commands.append(command)
        target = request.get('arguments', {}).get('target')
        answers = self.answers.get(f'{command} {target}' if target
                                   else command, [[]])
        if callable(answers):
            try:
                return {'return': answers(request.get('arguments', {}))}
            except Fails as error:
                return {'error': {'class': error.args[0],
                                  'desc': error.args[1]}}
        return {'return': answers.pop(0) if len(answers) > 1 else answers[0]}

    def close(self) -> None:
        """Go away."""
        self.socket.close()
