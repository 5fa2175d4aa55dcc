"""A server process for tests of what starts it: it echoes lines, and does as a line asks.

``python echo_child.py CONTROL LISTENER``; "die" kills it, "deaf" lets it ignore the trainer, "pid" and
"weights" tell what it knows.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

from steppe.serving.control import (
    Beat,
    Configure,
    Consumed,
    Failed,
    Frames,
    Map,
    Mapped,
    Opened,
    Publish,
    Stop,
    framed,
)


def serve(listener, known, line):
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as lines:
            for word in map(str.strip, lines):
                if word == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                if word == "map":
                    line.sendall(framed(Map("left", 3)))
                answer = {"pid": os.getpid(), **known}.get(word, word)
                print(answer, file=lines, flush=True)


def answered(message, known):
    """Note what the trainer says."""
    match message:
        case Publish(policies=policies):
            known["weights"] = {id: packed.version for id, packed in policies.items()}
        case Consumed(position=position, saved=saved):
            known["consumed"] = position, saved
        case Mapped(agent=agent, episode=episode, policy=policy):
            known["mapped"] = agent, episode, policy
        case Beat():
            known["beats"] += 1


def main(control, listening):
    line, listener = socket.socket(fileno=control), socket.socket(fileno=listening)
    frames, known, deaf = Frames(), {"beats": 0}, False
    while data := line.recv(1 << 16):
        for message in frames.feed(data):
            answered(message, known)
            if isinstance(message, Stop) and not deaf:
                return
            if not isinstance(message, Configure):
                continue
            ttl = message.settings.episode_ttl
            if ttl == 1.0:
                line.sendall(framed(Failed("no")))
                return
            if ttl == 2.0:
                return
            deaf = ttl == 3.0
            line.sendall(framed(Opened("log", 0)))
            threading.Thread(target=serve, args=(listener, known, line), daemon=True).start()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
