"""Reference code for the tests: section 1 of the design word by word, slow, in float64.

Nothing here is taken from the implementation: no identities, no windows, no pieces. The float32
softmax is taken as given (the contract decides order and mass on float32 probabilities), and all
that follows from it is computed from the definitions. At the end: what the property tests draw.
"""

import math
import random

import numpy as np
import torch
from hypothesis import strategies as st

# The tests' tensors are small: a second thread brings nothing, and costs several times the time where
# cores are shared (other workers of pytest-xdist, say).
torch.set_num_threads(1)


def compute_softmax(logits):
    """The float32 probabilities that the contract is stated on: (B, V) -> a list of float64 rows."""
    e = (logits.float() - logits.float().amax(-1, keepdim=True)).exp()
    return list((e / e.sum(-1, keepdim=True)).double().numpy())


def find_nucleus(p, top_p):
    """Ids of the smallest prefix, by falling probability and then rising id, with mass >= top_p."""
    chosen, mass = [], 0.0
    for i in sorted(range(len(p)), key=lambda i: (-p[i], i)):
        if p[i] == 0 or (top_p < 1 and mass >= top_p):  # with top_p = 1: every token that has p > 0
            break
        chosen.append(i)
        mass += p[i]
    return chosen


def compute_edges(p):
    """Cumulative shares (k + 1,) of a nucleus: a uniform number in [edges[i], edges[i + 1]) means token i."""
    shares = [0.0]
    for value in p:
        shares.append(shares[-1] + float(value))
    return [share / shares[-1] for share in shares]


def compute_q(p):
    """p restricted to the nucleus, divided by its mass."""
    p = [float(value) for value in p]
    mass = math.fsum(p)
    return [value / mass for value in p]


def compute_entropy(q):
    return -math.fsum(x * math.log(x) for x in q if x > 0)


def compute_varentropy(q):
    mean = compute_entropy(q)
    return math.fsum(x * (-math.log(x) - mean) ** 2 for x in q if x > 0)


def compute_full_entropy(logits):
    """H(softmax(logits)) of one row, the logits rounded to float32 as the contract has it."""
    z = logits.float().double().tolist()
    top = max(z)
    weights = [math.exp(x - top) for x in z]
    total = math.fsum(weights)
    return compute_entropy([w / total for w in weights])


def normalise(rows):
    """The rows (k, d) divided by their norms; a row of zeros stays one."""
    rows = rows.double().numpy()
    norms = np.sqrt((rows**2).sum(1, keepdims=True))
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def compute_cosine(u):
    """Mean of u_i.u_j over the unordered pairs i < j, from all k x k products."""
    i, j = np.triu_indices(len(u), 1)
    return (u @ u.T)[i, j].mean() if len(u) > 1 else 1.0


def compute_weighted_cosine(u, q):
    if len(u) == 1:
        return 1.0
    pairs = np.outer(q, q)
    np.fill_diagonal(pairs, 0)
    return (pairs * (u @ u.T)).sum() / pairs.sum()


def compute_similarity_entropy(u, q):
    z = (1 + u @ u.T) / 2
    np.fill_diagonal(z, 1)
    return -float(np.sum(q * np.log(z @ q)))


def compute_similarity(rows, p):
    """The three cosine quantities of one nucleus: its embedding rows (k, d), its probabilities (k,)."""
    u, weights = normalise(rows), np.array(compute_q(p))
    return compute_cosine(u), compute_weighted_cosine(u, weights), compute_similarity_entropy(u, weights)


def join_ragged(rows):
    """Rows of numbers of any length -> values (K,) float32 and offsets (B + 1,)."""
    values = torch.tensor([x for row in rows for x in row], dtype=torch.float32)
    return values, torch.tensor([0, *np.cumsum([len(row) for row in rows]).tolist()])


def split(values, offsets):
    """Ragged values as a list of rows."""
    return list(torch.split(values, offsets.diff().tolist()))


@st.composite
def draw_nucleus_probs(draw, max_size=12):
    """A nucleus's probabilities: falling, positive in float32, mass up to 1; from flat to nearly one-hot."""
    steepness = draw(st.sampled_from([0, 0.1, 1, 5, 30]))
    heights = draw(st.lists(st.integers(-20, 0), min_size=1, max_size=max_size))
    weights = np.exp(steepness * np.array(heights) / 10)
    mass = draw(st.sampled_from([1.0, 0.95, 0.9, 0.3]))
    return np.sort((weights / weights.sum() * mass).astype(np.float32))[::-1].tolist()


def compute_reference(model, ids, index, *, max_tokens, top_p, seed, ends, temperature=None):
    """One prompt, no cache, no batch: the quantities of each token from their definitions.

    With a temperature p is softmax(logits / temperature) in float64.
    """
    steps, embedding = [], model.get_input_embeddings().weight.detach()
    stream = random.Random(f"{seed}/{index}")
    for u in [stream.random() for _ in range(max_tokens)]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1:]
        if temperature is None:
            p = compute_softmax(logits)[0]
        else:
            logits = logits.double() / temperature
            p = logits.softmax(-1)[0].numpy()
        nucleus = find_nucleus(p, top_p)
        shares = compute_edges(p[nucleus])
        token = nucleus[max(i for i, edge in enumerate(shares[:-1]) if edge <= u)]
        if token in ends:
            return steps
        q = compute_q(p[nucleus])
        cosine, weighted, alike = compute_similarity(embedding[nucleus], p[nucleus])
        values = {
            "entropies": compute_entropy(q),
            "full_entropies": compute_full_entropy(logits[0]),
            "varentropies": compute_varentropy(q),
            "surprisals": -float(torch.tensor(p[token]).log()),
            "cosines": cosine,
            "weighted_cosines": weighted,
            "similarity_entropies": alike,
            "full_varentropies": compute_varentropy(p.tolist()),
            "collision_entropies": -math.log(math.fsum(x * x for x in q)),
            "ranks": nucleus.index(token) + 1,
            "margins": p[nucleus[0]] - sorted(p)[-2],
            "end_probabilities": sum(p[end] for end in ends),
        }
        steps.append((token, nucleus, p[nucleus], values))
        ids = [*ids, token]
    return steps
