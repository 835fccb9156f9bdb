"""Testcontainers for Python against `dhow serve`. Without Ryuk, its reaper: that image comes from Docker Hub."""

import os
import urllib.request

os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"

from testcontainers.core.container import DockerContainer  # noqa: E402
from testcontainers.core.network import Network  # noqa: E402
from testcontainers.core.wait_strategies import LogMessageWaitStrategy  # noqa: E402

serve = "sh -c 'mkdir /w; echo page >/w/index.html; echo ready; exec httpd -f -p 80 -h /w'"
with Network() as net:
    web = DockerContainer("busybox").with_command(serve).with_exposed_ports(80).with_env("A", "b")
    web.with_network(net).with_network_aliases("web").waiting_for(LogMessageWaitStrategy("ready"))
    with web:
        url = f"http://{web.get_container_host_ip()}:{web.get_exposed_port(80)}/"
        assert urllib.request.urlopen(url, timeout=30).read() == b"page\n"
        done = web.exec(["sh", "-c", "echo $A; exit 3"])
        assert (done.exit_code, done.output) == (3, b"b\n"), done
        with DockerContainer("busybox").with_command("sleep 1000").with_network(net) as other:
            assert other.exec("wget -qO- http://web/").output == b"page\n"
print("all of it")
