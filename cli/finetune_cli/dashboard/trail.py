"""The course of a number that a status has only the last value of, as far as this server has seen it."""

MOST_POINTS = 128


class Trail:
    """Points (step, value), oldest first. When it is full every second one is left out."""

    def __init__(self, most: int = MOST_POINTS) -> None:
        self._most = most
        self._stride = 1
        """Steps between two points, at least."""
        self.points: list[tuple[int, float]] = []

    def add(self, step: int, value: float) -> None:
        """One more; a run that has gone back to a checkpoint trains its steps again, and what was there is dropped."""
        while self.points and self.points[-1][0] > step:
            self.points.pop()
        if self.points and step - self.points[-1][0] < self._stride:
            return
        self.points.append((step, value))
        if len(self.points) > self._most:
            self.points = self.points[::2]
            self._stride = max(2 * self._stride, self.points[1][0] - self.points[0][0])
