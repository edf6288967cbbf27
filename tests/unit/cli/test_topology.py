"""A network as a picture."""

from lamella.cli.document import Document
from lamella.cli.topology import picture

FRONT: dict[str, object] = {
    "id": "net_1",
    "name": "front",
    "spec": {"subnet": "10.10.0.0/24", "mtu": 1500},
    "status": {"gateway": "10.10.0.1"},
}
HEAD = "└─ network front  10.10.0.0/24  gateway 10.10.0.1  MTU 1500"


def port(id: str, owner: str, address: str, **spec: object) -> Document:
    return Document({"id": id, "spec": {"network": "net_1", "owner": owner, "address": address, **spec}})


def test_an_empty_network() -> None:
    assert picture(Document(FRONT), {}) == [
        "outside",
        "│  by the uplink, which translates source addresses",
        HEAD,
        "   └─ nobody is on it",
    ]


def test_an_isolated_one_says_so() -> None:
    isolated = {**FRONT, "spec": {"subnet": "10.10.0.0/24", "isolated": True}}
    assert picture(Document(isolated), {})[1] == "×  isolated: nothing goes out"


def test_who_is_on_it_and_the_way_out() -> None:
    around = {
        "port": [
            port("p2", "inst_2", "10.10.0.10/24"),
            port(
                "p1", "inst_1", "10.10.0.9/24",
                firewalls=["fw_1"], publish=[{"host_port": 8080, "port": 80, "protocol": "tcp"}],
            ),
            Document({"id": "p3", "spec": {"network": "net_2", "owner": "inst_2", "address": "10.20.0.2/24"}}),
        ],
        "instance": [
            Document({"id": "inst_1", "name": "w1", "spec": {"isolation": "container"}, "status": {"phase": "running"}})
        ],
        "firewall": [Document({"id": "fw_1", "name": "web"})],
        "router": [Document({"name": "edge", "spec": {"networks": ["net_1", "net_2"], "uplink": True}})],
        "balancer": [
            Document(
                {"name": "www", "spec": {"network": "net_1", "address": "10.10.0.5", "listeners": [{"protocol": "tcp", "port": 80}]}}
            )
        ],
        "address": [Document({"spec": {"address": "192.0.2.7", "port": "p2"}})],
    }  # fmt: skip
    assert picture(Document(FRONT), around) == [
        "outside",
        "│  by router edge, which translates source addresses",
        HEAD,
        "   ├─ balancer www  10.10.0.5  tcp:80",
        "   ├─ w1  10.10.0.9  container, running  firewall web  published 8080:80/tcp",
        "   └─ inst_2  10.10.0.10  floating 192.0.2.7",
    ]
