"""Model servers to compare with: over HTTP, each in a virtual environment of its own; and RedisAI."""

from peers.base import Absent, Peer
from peers.fastapi_peer import FastApi
from peers.flask_peer import Flask
from peers.mlserver_peer import MLServer
from peers.mosec_peer import Mosec, MosecBatching
from peers.pytriton_peer import PyTriton
from peers.ray_peer import RayServe

__all__ = ["PEERS", "Absent", "Peer"]

PEERS: dict[str, type[Peer]] = {
    peer.key: peer for peer in (FastApi, Mosec, MosecBatching, Flask, MLServer, RayServe, PyTriton)
}
