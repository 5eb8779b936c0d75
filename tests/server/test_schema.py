"""schemathesis over the OpenAPI: whatever is sent, what is answered is what is documented."""

import pytest

for package in ("fastapi", "python_multipart", "prometheus_client", "uvicorn"):
    pytest.importorskip(package, reason="needs ddfm[server]")
schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")

from hypothesis import HealthCheck, Phase, assume, given, reject, settings, strategies
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import positive_data_acceptance

pytestmark = pytest.mark.slow
# Excluded below: that whatever fits the schema is accepted. What a file holds, such as its size, no schema says.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]  # shrinking would take minutes and the first case says enough


def _is_no_violation(field):
    """A form cannot tell a list of one value from that value, nor an empty one from none; empty text is the default."""
    name, value = field
    return name != "sources" and (value == "" or (isinstance(value, list) and len(value) < 2))


@strategies.composite
def cases(draw, operation, mode):
    """Requests of one operation, but those whose files schemathesis (4.32) fails to compare with the schema itself."""
    try:
        return draw(operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
    except ValueError as error:
        if "Unsupported type: 'Binary'" not in str(error):
            raise
        reject()


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_what_is_answered_is_what_is_documented(address, mode):
    tried = 0
    for found in schemathesis.openapi.from_url(f"{address}openapi.json").get_all_operations():
        operation = found.ok()

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
        @given(case=cases(operation, mode))
        def check(case):
            nonlocal tried
            assume(not (isinstance(case.body, dict) and any(map(_is_no_violation, case.body.items()))))
            tried += 1
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        try:
            check()
        except Unsatisfiable:  # an operation that nothing can be wrong with
            assert mode == "NEGATIVE", operation.path
    assert tried > 100
