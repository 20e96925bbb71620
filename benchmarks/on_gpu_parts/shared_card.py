"""The same training for an eighth as long, beside a second process that keeps the card busy.

RST at each evaluation is to be that of the training alone, to the last bit, however much longer it
takes; of SWA it is not looked at, for it averages in the last quarter of a run, which is another
one here.
"""

from rows import Limit, Row

from on_gpu_parts.neighbour import neighbour
from on_gpu_parts.part import Part
from on_gpu_parts.training import trained

SHARE = 0.125


def main():
    part = Part(__doc__)
    with neighbour(part.device):
        points = trained(part, SHARE)
    alone = {
        (method, step): rst for method, step, rst, *_ in part.data_of("training", "points") or []
    }
    both = {
        (method, step): rst
        for method, step, rst, *_ in points
        if method != "swa" and (method, step) in alone
    }
    if not both:
        part.note("No evaluation is at the same step as one of the training alone.")
        return
    differing = sum(rst != alone[where] for where, rst in both.items())
    what = "values of RST that differ from those of the training alone"
    row = Row(what, f"of {len(both)} at the same steps", len(both), differing, None, "")
    part.add(row.held_to(Limit(0), differing))


if __name__ == "__main__":
    main()
