"""One line of progress with the time that is left, for work that takes more than a few seconds."""

from __future__ import annotations

import sys

from tqdm import tqdm

# Where lines cannot be rewritten, as in a log file: the time to the first line; each next one takes twice as long.
FIRST_LINE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0
REWRITTEN = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}, {remaining} left{postfix}]"
WRITTEN = "{desc}{n_fmt} of {total_fmt} {unit}, {elapsed} so far, {remaining} left{postfix}"


class Progress(tqdm):
    """Progress on the error stream: a line that rewrites itself and is gone at the end, or in a file one now and then.

    A file gets no line of what is over within seconds. To be used as a context; `update` counts.
    """

    mininterval: float

    def __init__(
        self,
        total: int | None,
        what: str = "",
        unit: str = "",
        done: int = 0,
        hidden: bool = False,
        large_numbers: bool = False,
    ) -> None:
        """
        Args:
            total: how much there is to do; None if nobody knows.
            what: is done.
            unit: of what is counted, in the plural.
            done: how much was done before.
            hidden: whether nothing is to be seen, as of all processes but the first.
            large_numbers: whether to write 3.1M for 3,100,000.
        """
        self._rewrites = sys.stderr.isatty()
        super().__init__(
            total=total,
            desc=f"{what}: " if what else "",
            unit=unit,
            initial=done,
            disable=hidden,
            unit_scale=large_numbers,
            file=sys.stderr,
            leave=False,
            dynamic_ncols=self._rewrites,
            delay=0 if self._rewrites else FIRST_LINE_SECONDS,
            mininterval=0.2 if self._rewrites else FIRST_LINE_SECONDS,
            miniters=1,
            bar_format=REWRITTEN if self._rewrites else WRITTEN,
        )

    def about(self, what: str) -> None:
        """Say what is worked on from now on."""
        self.set_description(what, refresh=self._rewrites)

    def note(self, text: str) -> None:
        """Say something behind the time, such as the mean so far, when the line is written next."""
        self.set_postfix_str(text, refresh=False)

    @property
    def due(self) -> bool:
        """Whether the next `update` writes a line."""
        if self.disable:
            return False
        now = float(self._time())
        return now >= self.last_print_t + self.mininterval and now >= self.start_t + self.delay

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write the line; tqdm calls this."""
        if self._rewrites:
            return bool(super().display(msg, pos))
        if msg is None:
            self.fp.write(f"{self}\n")
            self.fp.flush()
            self.mininterval = min(2 * self.mininterval, LONGEST_PAUSE_SECONDS)
        return False
