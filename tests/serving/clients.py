"""A client for tests of a served run: it asks until it is answered, with the same number each time."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time


class GoneError(Exception):
    """Nobody answered for a while."""


class Asking:
    """One client over HTTP.

    Args:
        address: of the server.
        name: of the client.
        patience: seconds that a request may take, with all its repetitions.
        token: that it shows.
        stop: when set, it gives up at once.
        ca: file of the certificate that it trusts.
    """

    def __init__(self, address, name="c", patience=20.0, token=None, stop=None, ca=None):
        host, _, port = address.partition("://")[2].rpartition(":")
        self._tls = None if ca is None else ssl.create_default_context(cafile=ca)
        self._where, self.name, self.seq, self._patience = (host, int(port)), name, 0, patience
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self.repeated, self._stop = 0, stop or threading.Event()
        self._connect()

    def _connect(self):
        if self._tls is None:
            self.line = http.client.HTTPConnection(*self._where, timeout=self._patience)
        else:
            self.line = http.client.HTTPSConnection(*self._where, timeout=self._patience, context=self._tls)

    def close(self):
        """Hang up."""
        self.line.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def ask(self, method, path, body=None):
        """Status and answer, from whoever is there in the end."""
        end = time.monotonic() + self._patience
        while time.monotonic() < end and not self._stop.is_set():
            try:
                self.line.request(method, path, body, self._headers)
                answer = self.line.getresponse()
                said = answer.read()
                if answer.status not in (429, 503):
                    return answer.status, json.loads(said)
            except (OSError, http.client.HTTPException):
                self.line.close()
                self._connect()
            self.repeated += 1
            time.sleep(0.01)
        raise GoneError(path)

    def numbered(self):
        """The fields of the next request that say who sends it."""
        self.seq += 1
        return {"client": self.name, "epoch": 1, "seq": self.seq}

    def say(self, verb, **fields):
        """What the server answers, which is not refused."""
        body = json.dumps({**self.numbered(), **fields})
        status, answer = self.ask("POST", f"/v1/{verb}", body)
        assert status == 200, answer
        return answer

    def send(self, verb, **fields):
        """Ask, and await no answer."""
        self.line.request("POST", f"/v1/{verb}", json.dumps({**self.numbered(), **fields}), self._headers)

    def play(self, observations, rewards, episode_id=None, **last):
        """One episode; the rewards come with the next observation."""
        id = self.say("start", **({} if episode_id is None else {"episode_id": episode_id}))["episode_id"]
        actions = []
        for i, obs in enumerate(observations):
            earned = {} if i == 0 else {"reward": rewards[i - 1]}
            actions.append(self.say("act", episode_id=id, obs=obs, **earned)["action"])
        self.say("end", episode_id=id, obs=None, reward=rewards[-1], **last)
        return id, actions
