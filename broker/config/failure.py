"""The one error of the configuration: everything that is wrong with it, at once."""

from __future__ import annotations

from collections.abc import Iterable

from broker.config.binding import Finding


class ConfigError(Exception):
    """Holds every finding; its text is one line for each, `file:line: setting: what is wrong`."""

    def __init__(self, source: str, findings: Iterable[Finding]) -> None:
        self.source = source
        self.findings = sorted(findings)
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One line a finding, in the order of the file."""
        return [self._line(finding) for finding in self.findings]

    def _line(self, finding: Finding) -> str:
        place = f"{self.source}:{finding.line}" if self.source and finding.line else self.source
        return ": ".join(part for part in (place, finding.path, finding.message) if part)
