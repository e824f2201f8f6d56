"""K-means of many small point sets at once, without a host synchronisation.

Shapes: b batch, n points, k clusters, c coordinates.
"""

import torch
from torch import Tensor


@torch.no_grad()
def kmeans_members(points: Tensor, clusters: int, *, tolerance: float, iterations: int) -> Tensor:
    """Cluster each point set of a batch by Lloyd's iterations.

    Centres start at the points of evenly spaced ranks, first and last included; a centre without
    members moves to zero; a set is done when (Σ_k |shift of centre k|)² <= tolerance. Asking the
    device whether all sets are done would stop it in every iteration, so the number of
    iterations is fixed and a set that is done keeps its clusters. So each set stops by itself,
    whatever it shares a batch with; the released loop of VcT goes on with all until the last one
    is done.

    Args:
        points: (b, n, c) float, n >= clusters.
        clusters: k.
        tolerance: of the stop rule, in squared units of the points.
        iterations: how many there are at most; a set that is not done by then keeps its last
            clusters.

    Returns:
        (b, k, n) of the points' dtype, 1 where point n is a member of cluster k, else 0.
    """
    b, n, _ = points.shape
    numbers = torch.arange(clusters, device=points.device)
    centres = points[:, numbers * (n - 1) // max(clusters - 1, 1)]  # b k c
    members = points.new_zeros(b, clusters, n)
    moving = points.new_ones(b, dtype=torch.bool)
    for _ in range(iterations):
        # Without mm: the squares of far-off points would swallow their differences.
        distances = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.argmin(dim=-1)  # b n
        assigned = (nearest.unsqueeze(1) == numbers[:, None]).to(points.dtype)
        members = torch.where(moving[:, None, None], assigned, members)
        moved = means(members, points)
        shift = torch.linalg.vector_norm(moved - centres, dim=-1).sum(dim=-1)  # b
        moving = moving & (shift.square() > tolerance)
        centres = moved
    return members


def means(members: Tensor, points: Tensor) -> Tensor:
    """Means (b, k, c) of the members of each cluster, zero for those without."""
    counts = members.sum(dim=-1, keepdim=True).clamp(min=1)  # b k 1
    # Not by matmul, which autocast would run in bfloat16.
    return (members.unsqueeze(-1) * points.unsqueeze(1)).sum(dim=2) / counts  # b k c
