"""What the monitoring profile asks for, held against a page of metrics as a real server writes it."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cache.writer import CacheWriter
from shared.errors import TeachonceError
from shared.fake_teacher import FakeTeacher
from teacher_server.app import create_app
from teacher_server.settings import ServerSettings

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DEPLOY = REPOSITORY / "deploy"
SCRAPED = {"job": {"teachonce"}, "instance": set()}
"""Labels that Prometheus itself puts on everything."""
OWN = {"up": {}, "ALERTS": {"alertstate": {"pending", "firing"}, "alertname": set()}}
"""Series that Prometheus makes itself."""
Series = Mapping[str, Mapping[str, set[str]]]
"""Values by label by name."""


def scrape(folder: Path) -> str:
    """The page of a server that has a budget for all, one for a run, and has been asked and has refused."""

    async def story(writer: CacheWriter) -> str:
        app = create_app(ServerSettings(), teacher=FakeTeacher(classes=10), datasets=[], writer=writer)
        transport = httpx.ASGITransport(app=app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport) as client:
            await client.put("http://localhost/v1/runs/paper", json={"budget": 5})
            await client.post("http://localhost/v1/images", content=b"no image")
            return (await client.get("http://localhost/metrics")).text

    with CacheWriter.open(folder) as writer:
        writer.set_total_budget(100)
        writer.set_owner_budget("local", 50)
        return asyncio.run(story(writer))


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    found: dict[str, dict[str, set[str]]] = {name: dict(labels) for name, labels in OWN.items()}
    for family in text_string_to_metric_families(scrape(tmp_path_factory.mktemp("store"))):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    # Every value that these can have, seen or not.
    found["teacher_rejected_total"]["reason"] |= set(error_codes(TeachonceError))
    found["teacher_request_seconds_bucket"]["route"] |= {"/v1/logits", "/v1/images", "/v2/models/{model}/infer"}
    return found


def error_codes(kind: type[TeachonceError]) -> Iterator[str]:
    yield kind.code
    for narrower in kind.__subclasses__():
        yield from error_codes(narrower)


def alerts() -> list[dict]:
    return [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


def dashboard() -> dict:
    return json.loads((DEPLOY / "grafana/dashboards/teachonce.json").read_text())


def queries() -> dict[str, str]:
    """PromQL by what asks it, with Grafana's own variables as a duration."""
    shown = {
        f"{panel['title']} {target['refId']}": re.sub(r"\$__(rate_interval|range)", "5m", target["expr"])
        for panel in dashboard()["panels"]
        for target in panel["targets"]
    }
    return {rule["alert"]: rule["expr"] for rule in alerts()} | shown


def trouble(query: str, *, series: Series) -> list[str]:
    """What a query names that no page has: series, labels, and values of labels."""
    selectors: list[promql.VectorSelector] = []
    grouped: set[str] = set()

    def look(node: object) -> None:
        if isinstance(node, promql.VectorSelector):
            selectors.append(node)
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            grouped.update(node.modifier.labels)
        if isinstance(node, promql.BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
            grouped.update(node.modifier.matching.labels)

    promql.walk(promql.parse(query), look)
    assert selectors, query
    found = [f"series {one.name}" for one in selectors if one.name not in series]
    known = [SCRAPED, *(series[one.name] for one in selectors if one.name in series)]
    found += [f"label {label}" for label in grouped if not any(label in labels for labels in known)]
    for one in selectors:
        labels = SCRAPED | series.get(one.name, {})
        for matcher in one.matchers.matchers:
            found += [
                f"{one.name}{{{matcher.name}={value}}}"
                for value in matcher.value.split("|")
                if not any(re.fullmatch(value, real) for real in labels.get(matcher.name, ()))
            ]
    return found


def test_every_query_parses_and_asks_for_what_a_real_page_has(series: Series) -> None:
    assert len(queries()) > 30
    assert {what: wrong for what, query in queries().items() if (wrong := trouble(query, series=series))} == {}


def test_a_query_for_what_is_not_there_is_found(series: Series) -> None:
    wrong = 'sum by (runn) (rate(teacher_call_total[5m])) / teacher_images_total{source="hits"} > up{jb="x"}'
    assert trouble(wrong, series=series) == [
        "series teacher_call_total",
        "label runn",
        "teacher_images_total{source=hits}",
        "up{jb=x}",
    ]


def test_alerts_say_what_to_do_and_name_labels_that_they_have(series: Series) -> None:
    for rule in alerts():
        text = rule["annotations"]["summary"] + rule["annotations"]["action"]
        named = set(re.findall(r"\$labels\.(\w+)", text))
        selected = [series[name] for name in series if re.search(rf"\b{name}\b", rule["expr"])]
        assert named <= SCRAPED.keys() | {label for labels in selected for label in labels}, rule["alert"]
        assert rule["labels"]["severity"] in {"warning", "critical"}


def test_the_dashboard_is_wired_to_the_provisioned_prometheus() -> None:
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    panels = dashboard()["panels"]
    assert {target["datasource"]["uid"] for panel in panels for target in panel["targets"]} == {source["uid"]}
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for box in (panel["gridPos"] for panel in panels)
        for x in range(box["x"], box["x"] + box["w"])
        for y in range(box["y"], box["y"] + box["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < 24


def test_alerts_fire_when_they_should_and_the_configuration_is_accepted() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    for command in (
        ["check", "config", "--syntax-only", str(DEPLOY / "prometheus.yml")],
        ["test", "rules", str(Path(__file__).parent / "alerts.promtool.yml")],
    ):
        result = subprocess.run(["promtool", *command], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
