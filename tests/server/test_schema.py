"""schemathesis over the OpenAPI: whatever is sent, what is answered is what is documented."""

import pytest

for package in ("fastapi", "python_multipart", "prometheus_client", "uvicorn"):
    pytest.importorskip(package, reason="needs ddfm[server]")
schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import positive_data_acceptance

pytestmark = pytest.mark.slow
# Excluded below: that whatever fits the schema is accepted. What a file holds, such as its size, no schema says.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]  # shrinking would take minutes and the first case says enough


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_what_is_answered_is_what_is_documented(address, mode):
    tried = 0
    for found in schemathesis.openapi.from_url(f"{address}openapi.json").get_all_operations():
        operation = found.ok()

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
        @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
        def check(case):
            nonlocal tried
            tried += 1
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        try:
            check()
        except Unsatisfiable:  # an operation that nothing can be wrong with
            assert mode == "NEGATIVE", operation.path
    assert tried > 100
