# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#     notebook_metadata_filter: jupytext,kernelspec,-jupytext.text_representation.jupytext_version,-jupytext.text_representation.format_version
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Theory
#
# At each step a language model chooses among candidates. We ask two questions about that choice: how
# spread out is it, and how similar are the candidates? In this notebook we
#
# * define the two answers, entropy and mean cosine similarity, and related quantities,
# * show what values they have when the candidates are drawn blindly from the vocabulary,
# * show that both belong to one family, the similarity-sensitive diversities of ecology,
# * and say what all this determines about a scatter plot of one against the other, and what it leaves
#   open.
#
# Each proposition has a proof and a small figure, computed here from
# synthetic numbers; no model is needed.

# %% tags=["parameters"]
results_dir = "results"  # contains the measurements, if any; one figure at the end uses them
seed = 0  # seed of all random numbers on this page

# %% tags=["hide-input"]
import os
from pathlib import Path

import numpy as np
from IPython.display import Markdown

from nucleoscope.stats import theory
from nucleoscope.views import theory_figures

if Path.cwd().name in ("notebooks", "scratch"):  # JupyterLab starts there; paths are relative to the project's folder
    os.chdir("..")
rng = np.random.default_rng(seed)

# %% [markdown]
# ## The spread of a choice
#
# :::{prf:definition} Entropy
# :label: def-entropy
#
# A choice among $k$ candidates with probabilities $q_1, \dots, q_k > 0$ has the entropy
#
# $$H(q) = -\sum_i q_i \log q_i .$$
#
# :::
#
# This is Shannon's measure {cite:p}`shannon1948`. The logarithm is the natural one, so the unit is
# the **nat**: a fair coin has $\log 2 \approx 0.69$ nats, which is one bit.
#
# The number $-\log q_i$ is the **surprisal** of candidate $i$: the less likely, the more
# surprising. Entropy is the mean surprisal, and **varentropy** is its variance
# {cite:p}`kontoyiannis2014`.
#
# :::{prf:proposition} Range of the entropy
# :label: prop-range
#
# $0 \le H(q) \le \log k$. The lower bound is reached only at $k = 1$, the upper one only if all
# $q_i$ are equal.
# :::
#
# :::{prf:proof}
# Each term is at least 0, and 0 only if $q_i = 1$. The logarithm is concave, so by Jensen's
# inequality
#
# $$\begin{aligned}
# H(q) &= \sum_i q_i \log \tfrac{1}{q_i} \\
# &\le \log \sum_i q_i \tfrac{1}{q_i} = \log k,
# \end{aligned}$$
#
# with equality only if all $1 / q_i$ are equal.
# :::
#
# Conversely, $e^{H}$ is a number of candidates: a choice among $e^{H}$ equally likely candidates has
# the same entropy. It is the **effective number** of candidates, one of Hill's numbers
# {cite:p}`hill1973`, whose logarithms are Rényi's entropies {cite:p}`renyi1961`: order 0 counts
# candidates ($k$), order 1 is $e^{H}$, order 2 is $1 / \sum_i q_i^2$. The higher the order, the
# less the unlikely candidates count. Always $k \ge e^{H}$: a choice of 3 nats has at least 21
# candidates.

# %% tags=["hide-input"]
exponents = np.linspace(0, 3, 61)
choices = [theory.compute_zipf(50, exponent) for exponent in exponents]
effective = {
    "order 0: k": np.full(61, 50),
    "order 1: exp(H)": np.exp([theory.compute_entropy(q) for q in choices]),
    "order 2: 1 / Σq²": np.array([1 / (q**2).sum() for q in choices]),
}
titles = ("50 candidates, probability ∝ 1 / rankˢ", "exponent s", "effective number of candidates")
theory_figures.plot_curves(
    exponents,
    effective,
    titles,
    "Effective numbers of orders 1 and 2 fall as the choice becomes less even; order 0 is constant.",
)

# %% [markdown]
# At the left edge all candidates are equally likely, and the three orders give the same number. Further
# right the choice is less even; the curves never cross, and the gap between them shows how
# differently the orders treat unlikely candidates.

# %% [markdown]
# ## The nucleus
#
# Models rarely sample from their full distribution $p$: its long tail is unreliable. Nucleus
# sampling {cite:p}`holtzman2020` keeps the likeliest tokens.
#
# :::{prf:definition} Nucleus
# :label: def-nucleus
#
# Order the tokens by falling probability, and tokens of equal probability by rising id. The nucleus $N$
# is the shortest prefix of this list whose mass is at least `top_p`. Its size is $k$, its mass
# $m = \sum_{i \in N} p_i$, and the token is drawn from $q_i = p_i / m$, $i \in N$.
# :::
#
# The rule for ties makes $N$ a well-defined list: without it, two programs could measure
# different candidates at the same step. The project's `entropy` is $H(q)$, its `full_entropy` is
# $H(p)$. Their difference can be stated exactly. Let
# $h(m) = -m \log m - (1 - m) \log (1 - m)$, and let $t_i = p_i / (1 - m)$ be the distribution of
# the tail, outside $N$.
#
# :::{prf:proposition} What truncation does to entropy
# :label: prop-truncation
#
# If $0 < m < 1$, then
#
# $$\begin{aligned}
# H(p) = {} & h(m) + m\,H(q) \\
# & + (1 - m)\,H(t),
# \end{aligned}$$
#
# $$\begin{aligned}
# H(p) &\ge H(q) + \log \tfrac1m, \\
# H(p) &\le h(m) + m\,H(q) \\
# &\quad + (1 - m) \log (V - k).
# \end{aligned}$$
#
# :::
#
# :::{prf:proof}
# Inside $N$, $-\log p_i = -\log m - \log q_i$; outside, $-\log p_i = -\log (1 - m) - \log t_i$.
# Averaging over $p$ gives the equation: first say on which side the token is, then which one it
# is. The upper bound is {prf:ref}`prop-range` for $t$. For the lower bound, no tail token is likelier
# than a token of $N$, so each tail surprisal is at least $A = \sum_{i \in N} q_i (-\log p_i)$.
# Hence
#
# $$\begin{aligned}
# H(p) &= mA + \sum_{i \notin N} p_i (-\log p_i) \\
# &\ge mA + (1 - m) A \\
# &= A = H(q) + \log \tfrac1m .
# \end{aligned}$$
#
# :::
#
# So truncation never raises the entropy. It lowers it by at least $\log (1/m)$, which is little: 0.11
# nats or less if $m \ge 0.9$. The largest possible reduction grows with the vocabulary: even a tenth
# of the mass can be spread over very many tokens. At $m = 1$ there is no tail, and $H(p) = H(q)$.

# %% tags=["hide-input"]
p = theory.compute_zipf(1000, 1.2)
shares = np.linspace(0.02, 0.995, 196)
which, within, tail = np.array([theory.split_entropy(p, share) for share in shares]).T
pieces = {"within the nucleus: m H(q)": within, "which side: h(m)": which, "within the tail: (1−m) H(t)": tail}
titles = ("Entropy of 1000 tokens, p ∝ 1 / rank^1.2", "top_p", "nats")
theory_figures.plot_curves(
    shares, pieces, titles, "Three stacked parts of the entropy; their sum is constant.", stacked=True
)

# %% [markdown]
# The total height is $H(p)$ and is the same everywhere; only its division changes with
# `top_p`. The areas above the lowest one are the part that the entropy of the nucleus, weighted by its mass,
# leaves out.

# %% [markdown]
# ## Directions that are not random
#
# We measure the similarity of two tokens in the model's input embedding: row $i$ of its matrix, divided
# by its length, is a direction $u_i$ with $|u_i| = 1$, and $u_i \cdot u_j = \cos \angle (u_i, u_j)$
# is in $[-1, 1]$. These rows represent tokens out of context. Two of them are similar if the
# tokens are used similarly in general: forms of one word, spellings, members of one paradigm such as the days
# of the week.
#
# A cosine has no natural zero point. In trained embeddings most vectors share a common part
# {cite:p}`mu2018`, likelihood training with shared input and output embeddings can push them into a
# narrow cone {cite:p}`gao2019`, and contextual vectors are no better {cite:p}`ethayarajh2019`. Such
# a space is called **anisotropic**: two random tokens have a cosine well above 0.
#
# :::{prf:proposition} Mean cosine of a vocabulary
# :label: prop-anisotropy
#
# Let $\mu = \frac1V \sum_i u_i$. The mean cosine of all $V (V - 1) / 2$ pairs of rows is
#
# $$\bar c = |\mu|^2 - \frac{1 - |\mu|^2}{V - 1}.$$
#
# :::
#
# :::{prf:proof}
# $V^2 |\mu|^2 = \sum_{i,j} u_i \cdot u_j$ contains $V$ terms $|u_i|^2 = 1$ and each pair twice. So
#
# $$\bar c = \frac{V^2 |\mu|^2 - V}{V (V - 1)} = \frac{V |\mu|^2 - 1}{V - 1},$$
#
# which is the claim.
# :::
#
# With tens of thousands of rows the last term is negligible: the mean cosine is the squared length
# of the mean direction. It is 0 only if the directions cancel, and it differs between models. A
# cosine of 0.3 is high in one model and below average in another.

# %% tags=["show-input"]
# 2000 rows of width 64 with a common part, and as many without one
anisotropic = theory.draw_embedding(rng)
isotropic = theory.draw_embedding(rng, common=0)
means = (isotropic.mean(0), anisotropic.mean(0))
mean_squares = [float(mean @ mean) for mean in means]

# %% tags=["hide-input"]
pairs = rng.integers(0, 2000, (2, 20000))
pairs = pairs[:, pairs[0] != pairs[1]]
samples = {
    name: (units[pairs[0]] * units[pairs[1]]).sum(1)
    for name, units in (("no common part", isotropic), ("with a common part", anisotropic))
}
titles = ("Cosines of random pairs of rows", "cosine", "share of pairs")
theory_figures.plot_histograms(
    samples, mean_squares, titles, "Histograms of pair cosines of two synthetic embeddings, each with |μ|²."
)

# %% [markdown]
# Each histogram shows the cosines of random pairs in one synthetic embedding; the dashed line of the same
# colour is at $|\mu|^2$. By {prf:ref}`prop-anisotropy` the line marks the histogram's mean, except
# for sampling error and a term of order $1 / V$.

# %% [markdown]
# ## A mean over pairs, computed without pairs
#
# :::{prf:definition} Mean cosine of a nucleus
# :label: def-cosine
#
# For $k \ge 2$ candidates, `cosine` is the mean of $u_i \cdot u_j$ over the unordered pairs in $N$:
#
# $$c = \frac{2}{k (k - 1)} \sum_{i < j} u_i \cdot u_j .$$
#
# With one candidate there is no pair. By convention the project then records 1, and leaves these
# tokens out of all statistics.
# :::
#
# :::{prf:proposition} No pairs needed
# :label: prop-no-pairs
#
# With $S = \sum_{i \in N} u_i$,
#
# $$\begin{aligned}
# c &= \frac{|S|^2 - \sum_i |u_i|^2}{k (k - 1)} \\
# &= \frac{|S|^2 - k}{k (k - 1)} \;\ge\; -\frac{1}{k - 1}.
# \end{aligned}$$
#
# :::
#
# :::{prf:proof}
# Multiply out the square:
#
# $$\begin{aligned}
# |S|^2 &= \sum_{i,j} u_i \cdot u_j \\
# &= \sum_i |u_i|^2 + 2 \sum_{i<j} u_i \cdot u_j .
# \end{aligned}$$
#
# The bound is $|S|^2 \ge 0$.
# :::
#
# For vectors of width $d$ this takes of the order of $kd$ operations, whereas the pairs would take
# $k^2 d$; this makes nuclei of thousands of tokens measurable. The bound is informative too.
# Two candidates can be opposites, but many cannot all be opposed to each other: the bound rises to 0 as
# $k$ grows.
#
# In exact arithmetic $\sum_i |u_i|^2 = k$. In a computer the rounded rows $\tilde u_i$ have lengths
# slightly off 1. Writing $k$ then adds the error $\sum_i (|\tilde u_i|^2 - 1) / (k (k - 1))$, which
# has nothing to do with any pair; subtracting the squares of the rows that were really added
# removes exactly this term, and leaves only the rounding of the products themselves.

# %% tags=["show-input"]
sizes = [2, 4, 8, 16, 32, 64, 128, 256]
# isotropic rows of width 576, normalised in bfloat16
errors = theory.compute_rounding_errors(rng, sizes)

# %% tags=["hide-input"]
lines = {"subtracting k": errors[:, 0], "subtracting Σ|u|²": errors[:, 1]}
titles = ("Mean error of the mean cosine", "candidates k", "absolute error")
theory_figures.plot_curves(
    np.array(sizes), lines, titles, "Rounding errors of two forms of the same formula against k.", log="xy"
)

# %% [markdown]
# Both curves use the same rounded rows and differ only in what is subtracted. Their vertical
# distance, on the logarithmic scale, shows by which factor one form is more accurate than the other
# at that $k$.

# %% [markdown]
# ## What blind draws would give
#
# Before interpreting the cosine of a nucleus, we should know what it would be if the
# candidates were any $k$ rows, drawn blindly. A nucleus contains distinct tokens, so we draw
# **without replacement** from the $V$ rows of the table, all subsets being equally likely.
#
# :::{prf:proposition} Mean under blind draws
# :label: prop-mean
#
# The mean cosine of $k$ rows drawn without replacement has the expectation $\bar c$, for every
# $k \ge 2$. So does any weighted mean
# $\sum_{i \ne j} w_{ij}\, u_i \cdot u_j / \sum_{i \ne j} w_{ij}$ of rows in random order whose
# weights, with a nonzero sum, were fixed before the draw.
# :::
#
# :::{prf:proof}
# Each drawn pair, by itself, is a pair of distinct rows drawn with equal probability, so its
# expected cosine is $\bar c$. Means of such numbers, weighted or not, have the same expectation.
# :::
#
# The variance does depend on $k$. Split the cosines $c_{ij} = u_i \cdot u_j$ into the table's mean,
# one effect for each row, and a remainder, as in a two-way analysis of variance:
#
# $$\begin{aligned}
# c_{ij} &= \bar c + g_i + g_j + e_{ij}, \\
# g_i &= \frac{V - 1}{V - 2} \Big( \frac{1}{V - 1} \sum_{j \ne i} c_{ij} - \bar c \Big).
# \end{aligned}$$
#
# A row with large $g_i$ is close to everything. By this choice of $g$, $\sum_i g_i = 0$ and
# $\sum_{j \ne i} e_{ij} = 0$ for every $i$. Let $S_g^2 = \sum_i g_i^2 / (V - 1)$, and let
# $\sigma_e^2$ be the mean of $e_{ij}^2$ over all pairs.
#
# :::{prf:proposition} Variance under blind draws
# :label: prop-variance
#
# The mean cosine of $2 \le k \le V$ rows drawn without replacement from $V \ge 4$ has the variance
#
# $$\begin{aligned}
# \operatorname{Var}(c) & = \frac{4 S_g^2}{k} \Big( 1 - \frac kV \Big) \\
# & + \frac{2 \sigma_e^2}{k (k - 1)} \\
# & \cdot \frac{(V - k)(V - k - 1)}{(V - 2)(V - 3)} .
# \end{aligned}$$
#
# :::
#
# :::{prf:proof}
# For a drawn set $s$, $c - \bar c = \frac2k \sum_{i \in s} g_i + R$ with
# $R = \frac{2}{k (k - 1)} \sum_{i < j \in s} e_{ij}$. Write $\pi_2$, $\pi_3$, $\pi_4$ for the
# probability that 2, 3 or 4 given rows are all drawn.
#
# *First part.* The sum of a simple random sample without replacement, centred, has variance
# $k (1 - k/V) S_g^2$; times $4 / k^2$ this is the first term.
#
# *No covariance.* Because the $g_i$ sum to 0, and so do the $e_{jl}$ of each row,
#
# $$\begin{aligned}
# & \mathrm E \sum_{i \in s} g_i \sum_{j < l \in s} e_{jl} \\
# & \; = \sum_{j<l} e_{jl} \Big( \pi_2 (g_j + g_l) + \pi_3 \sum_{i \ne j,l} g_i \Big) \\
# & \; = (\pi_2 - \pi_3) \sum_{j<l} e_{jl} (g_j + g_l) \\
# & \; = (\pi_2 - \pi_3) \sum_j g_j \sum_{l \ne j} e_{jl} = 0 .
# \end{aligned}$$
#
# *Second part.* Let $Q = \sum_{i<j} e_{ij}^2$. For a given pair $ij$, the $e$ of the pairs that
# share exactly one row with it sum to $-2 e_{ij}$, and those of the disjoint pairs to $e_{ij}$,
# because all pairs together sum to 0. So
# $\mathrm E \big( \sum_{i<j \in s} e_{ij} \big)^2 = Q (\pi_2 - 2 \pi_3 + \pi_4)$. With
# $\pi_2 = \frac{k (k-1)}{V (V-1)}$, $\pi_3 = \pi_2 \frac{k-2}{V-2}$,
# $\pi_4 = \pi_3 \frac{k-3}{V-3}$ the bracket is $\pi_2 \frac{(V-k)(V-k-1)}{(V-2)(V-3)}$. Insert
# $Q = \sigma_e^2 V (V-1) / 2$ and multiply by $4 / (k (k-1))^2$.
# :::
#
# For a vocabulary much larger than the nucleus both factors with $V$ are close to 1, and the draws
# are practically independent. The formula is then Hoeffding's variance of a U-statistic of degree
# two {cite:p}`hoeffding1948`:
#
# $$\begin{gathered}
# \operatorname{Var}(c) = \frac{4 (k - 2)}{k (k - 1)} \zeta_1 + \frac{2}{k (k - 1)} \zeta_2, \\
# \zeta_1 = \operatorname{Var}(u \cdot \mu), \quad \zeta_2 = \operatorname{Var}(u \cdot u'),
# \end{gathered}$$
#
# with $u, u'$ independent random rows, $\zeta_1$ in place of $S_g^2$ and $\zeta_2 - 2 \zeta_1$
# in place of $\sigma_e^2$. It is exact for draws **with** replacement, in which a row may be paired with itself
# and the mean is $|\mu|^2$ instead of $\bar c$.
#
# The two parts show the effect of anisotropy. With directions uniform on the sphere, $\zeta_1 = 0$ and
# $\zeta_2 = 1/d$: the standard deviation falls like $1/k$. With a common direction that some rows
# follow more than others, $\zeta_1 > 0$, and beyond some $k$ it falls only like $1/\sqrt k$.
# Neither part needs a $V \times V$ table: the sums over all pairs follow from $\sum_i u_i$ and the
# $d \times d$ matrix $\sum_i u_i u_i^\top$.

# %% tags=["show-input"]
# mean cosine, S_g², σ_e², from sums over rows alone
center, spread, rest = theory.compute_draw_moments(anisotropic)
sizes = [2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987]
sizes = np.array(sizes)
drawn = theory.draw_cosines(rng, anisotropic, sizes, draws=300)
rows = len(anisotropic)
variance = theory.compute_draw_variance(sizes, rows, spread, rest)
deviation = np.sqrt(variance)

# %% tags=["hide-input"]
band = {"mean": np.full(14, center), "mean + 2 sd": center + 2 * deviation, "mean − 2 sd": center - 2 * deviation}
dots = {"a blind draw": (np.repeat(sizes, 60), drawn[:, :60].ravel())}
titles = ("Mean cosine of k rows drawn blindly", "candidates k", "mean cosine")
theory_figures.plot_curves(
    sizes, band, titles, "Mean cosines of random sets narrow around one mean as k grows.", dots, log="x"
)

# %% [markdown]
# Each dot is one set of $k$ rows drawn blindly; the lines are the mean by {prf:ref}`prop-mean` and
# two standard deviations by {prf:ref}`prop-variance`. The middle line is level for every
# embedding, and the band around it can only narrow: a scatter plot of cosine has this funnel shape
# if the candidates have nothing in common except the table they come from.

# %% tags=["hide-input"]
both = {
    "formula": deviation,
    "isotropic of the same width": np.sqrt(2 / (sizes * (sizes - 1) * anisotropic.shape[1])),
}
dots = {"300 draws": (sizes, drawn.std(1))}
titles = ("Standard deviation of the mean cosine", "candidates k", "standard deviation")
theory_figures.plot_curves(sizes, both, titles, "Simulated and computed standard deviations against k.", dots, log="xy")

# %% [markdown]
# The dots are the standard deviations of the simulated draws, the solid line is the formula; with 300
# draws the standard deviation is known to about 4%, so small distances between dot and line are chance. The dashed
# line applies to directions without any common part in an infinite table.

# %% [markdown]
# ## How size alone produces a correlation
#
# Blind draws give a funnel but no slope: by {prf:ref}`prop-mean` the expected cosine is the same
# at each $k$. Real nuclei are not drawn blindly. Suppose only that a few candidates belong together, as the
# forms of one word do, and that a longer nucleus adds tokens that are unrelated to them.
#
# :::{prf:proposition} Dilution
# :label: prop-dilution
#
# Let a nucleus of $k \ge 2$ consist of a fixed core of $a$ candidates with mean cosine $\gamma$, and of $k - a$
# rows drawn without replacement from a table with mean cosine $\bar c$ that does not contain the core.
# Let $\beta$ be the mean cosine of core and table rows. Then
#
# $$\begin{aligned}
# \mathrm E\, c = \bar c & + \frac{a (a - 1)}{k (k - 1)} (\gamma - \bar c) \\
# & + \frac{2 a (k - a)}{k (k - 1)} (\beta - \bar c) .
# \end{aligned}$$
#
# :::
#
# :::{prf:proof}
# Of the $k (k - 1)$ ordered pairs, $a (a - 1)$ are in the core, $2 a (k - a)$ join core and rest,
# and $(k - a)(k - a - 1)$ are in the rest; their expected cosines are $\gamma$, $\beta$ and
# $\bar c$.
# :::
#
# If the core is more similar than average, $\gamma > \bar c$ and $\beta \approx \bar c$, the cosine
# falls with $k$ towards $\bar c$; if it is less similar, the cosine rises. Entropy tends to grow with
# $k$ too, since $\log k$ is its upper bound. The two are then correlated even if they are independent among nuclei
# of the same size. A coefficient of entropy and cosine therefore answers two
# questions at once: how the cosine depends on the *number* of candidates, and how it depends on the way the
# probability is shared among them. So the project also reports
#
# * the **partial** coefficient given $k$: Spearman's, from the three coefficients of ranks. Ranks
#   do not change when $k$ is replaced by $\log k$, so it is the coefficient given $\log k$ too. It
#   removes what a straight line in the ranks can explain, which is most of a monotone dependence
#   on $k$, but not all of it;
# * the **within-prompt** coefficient: Spearman's inside each prompt, averaged over prompts.
#
# Covariances show the reason for the second, with $P$ for the prompt:
#
# $$\begin{aligned}
# \operatorname{Cov}(H, c) = {} & \mathrm E \operatorname{Cov}(H, c \mid P) \\
# & + \operatorname{Cov}\big( \mathrm E[H \mid P],\, \mathrm E[c \mid P] \big).
# \end{aligned}$$
#
# If the texts of some prompts have both more entropy and less similar candidates than those of others,
# the last term is negative, even if the two are unrelated within each text.

# %% tags=["show-input"]
nuclei = {"count": 1500, "core": 4, "noise": 0.08, "largest": 200}
drawn = theory.draw_diluted_nuclei(rng, anisotropic, **nuclei)
sizes, entropies, cosines = drawn
plain = theory.compute_spearman(entropies, cosines)
partial = theory.compute_partial_spearman(entropies, cosines, sizes)

# %% tags=["hide-input"]
titles = (f"Spearman {plain:.2f}; given k {partial:.2f}".replace("-", "−"), "entropy (nats)", "mean cosine")
dots = {
    name: (entropies[chosen], cosines[chosen]) for name, chosen in (("k < 20", sizes < 20), ("k ≥ 20", sizes >= 20))
}
theory_figures.plot_curves(
    np.array([]), {}, titles, "Entropy against mean cosine of synthetic nuclei, small and large.", dots
)

# %% [markdown]
# Each dot is a synthetic nucleus: four noisy copies of one row, the others drawn blindly, and
# probabilities chosen independently of both, so that at each $k$ entropy and cosine are
# independent. The first number in the title is therefore an effect of size alone; the second is what
# remains after the adjustment, and it differs from 0 by chance and by what the straight line misses.

# %% [markdown]
# ## Entropy and similarity in one family
#
# Entropy treats candidates as either the same or different: *Tuesday*, *Wednesday* and *Thursday*
# are as far apart as *Tuesday*, *banana* and *because*. Ecologists had the same problem, with
# species instead of tokens.
#
# :::{prf:definition} Similarity-sensitive diversity
# :label: def-diversity
#
# Let $Z$ be a $k \times k$ matrix with $0 \le Z_{ij} \le 1$ and $Z_{ii} = 1$. The ordinariness of
# candidate $i$ is $(Zq)_i = \sum_j Z_{ij} q_j$: the probability mass near it. The diversity of
# order $r \ge 0$ is
#
# $$\begin{aligned}
# D_r^Z(q) &= \Big( \sum_i q_i \, (Zq)_i^{\,r-1} \Big)^{1 / (1 - r)}, \\
# D_1^Z(q) &= \prod_i (Zq)_i^{-q_i},
# \end{aligned}$$
#
# the first for $r \ne 1$.
#
# :::
#
# This is due to {cite:t}`leinster2012`, who write $q$ for the order and $p$ for the weights.
# $D_r^Z$ is an effective number of *distinct* candidates. With $Z$ the identity it is Hill's
# number, so $\log D_1^I = H(q)$: entropy is the member with order 1 and a similarity that recognises
# only identity. {cite:t}`cheng2024` use order 1 with similarities between translations. Our
# `similarity_entropy` is theirs for the candidates of one step, $\log D_1^Z(q)$ with
# $Z_{ij} = (1 + u_i \cdot u_j) / 2$. ({cite:t}`kuhn2023` have the same aim for whole answers, which
# they group by meaning before they compute the entropy.)
#
# :::{prf:proposition} Cosines are order 2
# :label: prop-family
#
# Let $k \ge 2$ and $M = \sum_i q_i u_i \ne 0$, and let
# $w = \sum_{i \ne j} q_i q_j\, u_i \cdot u_j / \sum_{i \ne j} q_i q_j$ be the project's
# `weighted_cosine`. With $Z_{ij} = u_i \cdot u_j$ in the formula of {prf:ref}`def-diversity`,
#
# $$\begin{aligned}
# \frac{1}{D_2^Z(q)} &= \sum_{i,j} q_i q_j\, u_i \cdot u_j \\
# &= |M|^2 = \frac{1}{D_2^I(q)} \\
# &\quad + \Big( 1 - \frac{1}{D_2^I(q)} \Big) w .
# \end{aligned}$$
#
# With equal weights $q_i = 1/k$, $w$ is the mean cosine $c$, and $D_2^Z = k / (1 + (k - 1) c)$.
# :::
#
# :::{prf:proof}
# At order 2, $1 / D_2^Z = \sum_i q_i (Zq)_i$, which is $\sum_{i,j} q_i q_j Z_{ij}$ and for cosines
# $M \cdot M$. Its terms with $i = j$ sum to $\sum_i q_i^2 = 1 / D_2^I$; the others have the total
# weight $1 - \sum_i q_i^2$ and the mean $w$. With equal weights $\sum_i q_i^2 = 1/k$.
# :::
#
# So mean cosine and entropy are two members of one family: one uses similarity with order 2 and
# weights that may be set equal, the other ignores similarity and has order 1. Two known quantities
# appear along the way. $k / (1 + (k - 1) c)$ is the effective sample size of $k$ observations with
# intraclass correlation $c$ {cite:p}`kish1965`. And $1 - |M|^2 = \sum_i q_i |u_i - M|^2$, the
# variance of the candidates around their mean, is Rao's quadratic entropy with the dissimilarity
# $1 - u_i \cdot u_j$ {cite:p}`rao1982`.
#
# Cosines may be negative, and then they are not similarities in the sense of
# {prf:ref}`def-diversity`. At order 2 the sum is a squared length, so $1 / D_2^Z$ is still in
# $[0, 1]$; but the diversity can exceed $k$. Two opposite candidates with weights 0.6 and 0.4 have
# $M = 0.2\, u_1$ and $D_2^Z = 25$. Order 1 fails completely: there $(Zq)_2 = -0.2$, and the
# logarithm of a negative number is not defined. The shift $Z_{ij} = (1 + u_i \cdot u_j) / 2$ fixes
# both. It is in $[0, 1]$, is 1 on the diagonal, keeps the order of the cosines, and needs no
# pairs either: $(Zq)_i = (1 + u_i \cdot M) / 2$.

# %% tags=["show-input"]
q = np.array([0.4, 0.3, 0.2, 0.1])
# cosines of, say, four days of the week; of four unrelated words
similar = np.full((4, 4), 0.8) + 0.2 * np.eye(4)
different = np.full((4, 4), 0.1) + 0.9 * np.eye(4)
orders = np.linspace(0, 3, 61)

# %% tags=["hide-input"]
similarities = {"Z = identity": np.eye(4), "Z = (1 + cos)/2, similar": (1 + similar) / 2}
similarities["Z = (1 + cos)/2, different"] = (1 + different) / 2
profiles = {name: np.array([theory.compute_diversity(q, z, r) for r in orders]) for name, z in similarities.items()}
points = {"similar": similar, "different": different}
dots = {
    f"1/|M|², {name}": (np.array([2.0]), np.array([theory.compute_diversity(q, z, 2)])) for name, z in points.items()
}
titles = ("Diversity of one choice, by order", "order r", "effective number of candidates")
figure = theory_figures.plot_curves(
    orders, profiles, titles, "Diversity profiles of a choice among similar and among different words.", dots
)
figure.update_traces(marker_size=11, marker_opacity=1, selector={"mode": "markers"})

# %% [markdown]
# All curves and points belong to the same four probabilities; they differ in what counts as
# similar. Entropy is the logarithm of the solid line at order 1, and cannot distinguish the days from the
# four different words; every other curve or point can.

# %% [markdown]
# ## How large similarity entropy can be
#
# :::{prf:proposition} Between 0 and entropy
# :label: prop-similarity
#
# For any $Z$ with $0 \le Z_{ij} \le 1$ and $Z_{ii} = 1$, and all $q_i > 0$:
# $0 \le \log D_1^Z(q) \le H(q)$. The value is 0 only if all $Z_{ij} = 1$, and $H(q)$ only if
# all $Z_{ij} = 0$ for $i \ne j$. With $Z_{ij} = (1 + u_i \cdot u_j)/2$ these conditions mean: all directions
# equal; and $k = 1$, or $k = 2$ with opposite directions.
# :::
#
# :::{prf:proof}
# $(Zq)_i \le \sum_j q_j = 1$ and $(Zq)_i \ge Z_{ii} q_i = q_i$, so
# $0 \le -\log (Zq)_i \le -\log q_i$. Average over $q$. Since all $q_j > 0$, equality on the left
# for every $i$ requires all $Z_{ij} = 1$, on the right all $Z_{ij} = 0$, $j \ne i$. For cosines this
# means $u_i \cdot u_j = 1$, or $u_i \cdot u_j = -1$ for all pairs; by {prf:ref}`prop-no-pairs` no
# three directions are pairwise opposite.
# :::
#
# For this $Z$ much more can be said: one number, the length of the mean direction, nearly determines the
# value.
#
# :::{prf:proposition} Between two curves
# :label: prop-curves
#
# Let $Z_{ij} = (1 + u_i \cdot u_j)/2$ and $\rho = |M| = |\sum_i q_i u_i|$. Then
#
# $$\begin{aligned}
# \log \frac{2}{1 + \rho^2} &\le \log D_1^Z(q) \\
# &\le h\Big( \frac{1 + \rho}{2} \Big) \le \log 2 .
# \end{aligned}$$
#
# The first is an equality if all $u_i \cdot M$ are equal, the second if all $u_i$ are on one
# line.
# :::
#
# :::{prf:proof}
# Let $x_i = u_i \cdot M$, so that $|x_i| \le \rho$, $\sum_i q_i x_i = \rho^2$ and
# $\log D_1^Z = -\sum_i q_i \log \frac{1 + x_i}{2}$. The function $-\log$ is convex: Jensen's
# inequality gives the first bound. If $\rho = 1$, all $u_i$ equal $M$ and everything is 0.
# Otherwise, on $[-\rho, \rho]$ the convex function $-\log \frac{1 + x}{2}$ is below its chord,
# which at $x$ is the mean of the values at $\rho$ and $-\rho$ with weights
# $\frac{\rho + x}{2 \rho}$ and $\frac{\rho - x}{2 \rho}$ (for $\rho = 0$ all $x_i = 0$ and the
# value is $\log 2$). Averaged over $q$ the weights become $\frac{1 + \rho}{2}$ and
# $\frac{1 - \rho}{2}$, and the bound is
# $-\frac{1 + \rho}{2} \log \frac{1 + \rho}{2} - \frac{1 - \rho}{2} \log \frac{1 - \rho}{2}$.
# Equality requires all $x_i = \pm \rho$. The last bound is {prf:ref}`prop-range` for two candidates.
# :::
#
# So `similarity_entropy` never exceeds $\log 2 \approx 0.69$ nats, however large the nucleus: with
# this $Z$ orthogonal candidates are still half similar, and a thousand of them count as less than
# two. This is a property of the shift, not of language. By {prf:ref}`prop-family`
# $\rho^2 = \sum_i q_i^2 + (1 - \sum_i q_i^2)\, w$, so for a spread-out choice, where $\sum_i q_i^2$
# is small, $\rho^2$ is close to $w$ and the value is between $\log (2 / (1 + w))$ and
# $h((1 + \sqrt w) / 2)$: it hardly measures spread any more, and measures similarity instead. An advantage over entropy:
# splitting a candidate into identical copies does not change it.

# %% tags=["show-input"]
# H, similarity entropy and |M| of many kinds of nuclei
entropies, similars, lengths = theory.draw_choices(rng, 1200).T

# %% tags=["hide-input"]
grid = np.linspace(0, 1, 101)
lines = {"upper: h((1+ρ)/2)": theory.compute_binary_entropy((1 + grid) / 2)}
lines["lower: log(2/(1+ρ²))"] = np.log(2 / (1 + grid**2))
dots = {"synthetic nucleus": (lengths, similars)}
titles = ("Similarity entropy and the mean direction", "ρ = |M|", "similarity entropy (nats)")
theory_figures.plot_curves(
    grid, lines, titles, "Similarity entropy is between two close curves of the length of M.", dots
)

# %% [markdown]
# Every dot is between the two lines, whatever the size, shape and dimension of its nucleus; this is
# {prf:ref}`prop-curves`. Where the lines are close, the length of the mean direction contains nearly
# all the information of similarity entropy.

# %% tags=["hide-input"]
grid = np.linspace(0, 4.5, 91)
lines = {"entropy, or log 2 if that is less": np.minimum(grid, np.log(2))}
dots = {"synthetic nucleus": (entropies, similars)}
titles = ("Similarity entropy and entropy", "entropy (nats)", "similarity entropy (nats)")
theory_figures.plot_curves(grid, lines, titles, "Similarity entropy stays below entropy and below log 2.", dots)

# %% [markdown]
# No dot is above the line: its slope is the bound of {prf:ref}`prop-similarity`, its level part that of
# {prf:ref}`prop-curves`. How far a dot is below the line depends on how similar its
# candidates are, and on how uneven the choice among them is.

# %% [markdown]
# ## Recap: what theory determines, and what it does not
#
# Determined, for every model and text:
#
# * a token of entropy $H$ has at least $e^H$ candidates ({prf:ref}`prop-range`), and truncation can
#   only lower the entropy ({prf:ref}`prop-truncation`);
# * cosines must be compared with $\bar c \approx |\mu|^2$, not with 0 ({prf:ref}`prop-anisotropy`), so levels
#   of two models cannot be compared;
# * the cosine's lower bound is $-1 / (k - 1)$ ({prf:ref}`prop-no-pairs`), and blind draws narrow to
#   $\bar c$ as $k$ grows ({prf:ref}`prop-mean`, {prf:ref}`prop-variance`). High entropy requires
#   large $k$, so there blind draws would be in a narrow band at $\bar c$. The position and width of the measured
#   band can be compared with that;
# * `similarity_entropy` is at most $\min(H, \log 2)$ ({prf:ref}`prop-similarity`,
#   {prf:ref}`prop-curves`), so part of its correlation with entropy or cosine is arithmetic.
#
# Not determined: the sign of the slope. {prf:ref}`prop-dilution` gives a falling cloud if a few
# candidates belong together and the rest do not, and a rising one if short nuclei contain
# dissimilar tokens, say a full stop and a name, and long ones contain members of one class. Both happen in
# language. Nothing here predicts the partial coefficient given $k$, or says that
# nuclei resemble blind draws at all. Whether a model hesitates among similar or dissimilar
# words is a question for measurements, which the other pages answer.
#
# The last figure shows measurements against k, the axis about which theory says most.

# %% tags=["hide-input"]
nuclei = theory_figures.load_measured(results_dir)
theory_figures.plot_measured(nuclei)

# %% tags=["hide-input"]
Markdown(theory_figures.describe_measured(nuclei))
