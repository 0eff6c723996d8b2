"""MRI of a phantom: tissue parameters, signal equations, bias field and noise.

The signal of a voxel is the sum of the signals of its tissues, weighted by their fractions: partial volume, as in a
real scan.

Axes: volumes (D, H, W). Times are in ms. Signals are in arbitrary units; pure water at full recovery gives 1000.

Sources of the tissue parameters:

- BrainWeb: tissue parameters of the simulated brain database (Collins et al., IEEE TMI 1998; 1.5 T).
- Stanisz: Stanisz et al., Magn Reson Med 54 (2005), T1 and T2 in vitro at 1.5 and 3 T.
- de Bazelaire: de Bazelaire et al., Radiology 230 (2004), abdomen and pelvis in vivo at 1.5 and 3 T.
- Gold: Gold et al., Am J Roentgenol 183 (2004), musculoskeletal tissues in vivo.
- ours: no single source; chosen so that the tissue looks as in clinical images. Proton densities without a source are
  also ours.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ppdm.simulation.fields import smooth_field
from ppdm.simulation.phantom import Anatomy, Grid

WATER_SIGNAL = 1000.0
BIAS_MM = 120.0


class Relaxation(NamedTuple):
    """MRI parameters of a tissue: T1 and T2 in ms, proton density relative to water."""

    t1: float
    t2: float
    pd: float


# No signal: with a proton density of 0, T1 and T2 have no effect.
_NOTHING = Relaxation(1000.0, 1.0, 0.0)

RELAXATION: Mapping[float, Mapping[str, Relaxation]] = {
    1.5: {
        "air": _NOTHING,
        "csf": Relaxation(2569, 329, 1.0),  # BrainWeb
        "grey_matter": Relaxation(833, 83, 0.86),  # BrainWeb
        "white_matter": Relaxation(500, 70, 0.77),  # BrainWeb
        "deep_grey": Relaxation(700, 72, 0.82),  # ours: iron makes it darker than cortex on T2, closer to white on T1
        "lesion": Relaxation(752, 237, 0.76),  # BrainWeb, multiple sclerosis
        "cortical_bone": Relaxation(250, 0.5, 0.15),  # ours: bound water, gone at any echo time used here
        "marrow": Relaxation(549, 49, 0.9),  # de Bazelaire, L4
        "fat": Relaxation(350, 70, 1.0),  # BrainWeb
        "muscle": Relaxation(900, 47, 1.0),  # BrainWeb
        "skin": Relaxation(900, 47, 0.9),  # ours: as muscle
        "lung": Relaxation(1200, 40, 0.2),  # ours: a fifth of the density of tissue
        "liver": Relaxation(586, 46, 0.9),  # de Bazelaire
        "spleen": Relaxation(1057, 79, 0.9),  # de Bazelaire
        "kidney": Relaxation(966, 87, 0.9),  # de Bazelaire, cortex
        "myocardium": Relaxation(1030, 40, 0.9),  # Stanisz
        "blood": Relaxation(1441, 290, 0.9),  # Stanisz
        "bowel": Relaxation(900, 70, 0.9),  # ours
    },
    3.0: {
        "air": _NOTHING,
        "csf": Relaxation(4160, 2100, 1.0),  # ours: near free water
        "grey_matter": Relaxation(1820, 99, 0.86),  # Stanisz
        "white_matter": Relaxation(1084, 69, 0.77),  # Stanisz
        "deep_grey": Relaxation(1500, 78, 0.82),  # ours: as at 1.5 T
        "lesion": Relaxation(1630, 230, 0.76),  # ours: the BrainWeb value, scaled like grey matter
        "cortical_bone": Relaxation(300, 0.4, 0.15),  # ours
        "marrow": Relaxation(586, 49, 0.9),  # de Bazelaire, L4
        "fat": Relaxation(371, 133, 1.0),  # Gold, subcutaneous
        "muscle": Relaxation(1412, 50, 1.0),  # Stanisz
        "skin": Relaxation(1412, 50, 0.9),  # ours: as muscle
        "lung": Relaxation(1300, 35, 0.2),  # ours
        "liver": Relaxation(809, 34, 0.9),  # de Bazelaire
        "spleen": Relaxation(1328, 61, 0.9),  # de Bazelaire
        "kidney": Relaxation(1142, 76, 0.9),  # de Bazelaire, cortex
        "myocardium": Relaxation(1471, 47, 0.9),  # Stanisz
        "blood": Relaxation(1932, 275, 0.9),  # Stanisz
        "bowel": Relaxation(1200, 60, 0.9),  # ours
    },
}


@dataclass(frozen=True)
class SpinEcho:
    """Spin echo: S = PD · (1 − e^(−TR/T1)) · e^(−TE/T2).

    Args:
        tr, te: repetition and echo time in ms, 0 <= te < tr.

    Raises:
        ValueError: times outside of these ranges.
    """

    tr: float
    te: float

    def __post_init__(self) -> None:
        _check_times(self.te, self.tr)

    def signal(self, t1: np.ndarray, t2: np.ndarray, pd: float) -> np.ndarray:
        """Signal of a tissue; `t1` and `t2` in ms, any shape."""
        return WATER_SIGNAL * pd * (1 - np.exp(-self.tr / t1)) * np.exp(-self.te / t2)


@dataclass(frozen=True)
class InversionRecovery:
    """Inversion recovery: S = PD · (1 − 2e^(−TI/T1) + e^(−TR/T1)) · e^(−TE/T2). MPRAGE images look similar.

    The signal is signed. The sign is lost only when the magnitude of the whole voxel is computed.

    Args:
        tr, ti, te: repetition, inversion and echo time in ms, 0 <= te < tr and 0 <= ti < tr.

    Raises:
        ValueError: times outside of these ranges.
    """

    tr: float
    ti: float
    te: float

    def __post_init__(self) -> None:
        _check_times(self.te, self.tr)
        _check_times(self.ti, self.tr)

    def signal(self, t1: np.ndarray, t2: np.ndarray, pd: float) -> np.ndarray:
        """Signal of a tissue; `t1` and `t2` in ms, any shape."""
        recovered = 1 - 2 * np.exp(-self.ti / t1) + np.exp(-self.tr / t1)
        return WATER_SIGNAL * pd * recovered * np.exp(-self.te / t2)


Sequence = SpinEcho | InversionRecovery


@dataclass(frozen=True)
class MRIProtocol:
    """Scan protocol, and the variation between subjects.

    Args:
        field_strength: in tesla, a key of RELAXATION.
        sequences: name and sequence of each image; all images show the same tissue.
        t1_jitter, t2_jitter: standard deviation of log T1 and log T2 between subjects, shared by all tissues of a
            subject.
        tissue_jitter: standard deviation of the additional log factor of each single tissue.
        texture: standard deviation of the log factor within a tissue, with smoothness `texture_mm`. T1 and T2 vary
            independently, so that one contrast does not determine the other.
        texture_mm: smoothness of the texture in mm.
        bias: the receive field is within 1 ± bias.
        snr: signal of white matter divided by the noise's standard deviation, for each image.

    Raises:
        ValueError: a field strength without parameters, no sequence, or numbers out of range.
    """

    field_strength: float = 1.5
    sequences: Mapping[str, Sequence] = field(
        default_factory=lambda: {
            "T1w": InversionRecovery(tr=2000, ti=800, te=4),
            "T2w": SpinEcho(tr=4500, te=100),
        }
    )
    t1_jitter: float = 0.10
    t2_jitter: float = 0.04
    tissue_jitter: float = 0.05
    texture: float = 0.03
    texture_mm: float = 12.0
    bias: float = 0.10
    snr: float = 40.0

    def __post_init__(self) -> None:
        if self.field_strength not in RELAXATION:
            known = " and ".join(f"{tesla:g}" for tesla in RELAXATION)
            raise ValueError(f"tissue parameters are known at {known} T, got {self.field_strength!r} T")
        if not self.sequences:
            raise ValueError("an MRI protocol needs at least one sequence, got none")
        deviations = (self.t1_jitter, self.t2_jitter, self.tissue_jitter, self.texture)
        if not (all(0 <= deviation < math.inf for deviation in deviations) and 0 <= self.bias < 1):
            raise ValueError(f"jitter and texture must be numbers from 0 on, and bias from 0 to below 1; got {self}")
        if not (self.snr > 0 and 0 < self.texture_mm < math.inf):
            raise ValueError(f"snr and texture_mm must be positive, got {self.snr} and {self.texture_mm}")


def nulling_time(t1: float, tr: float) -> float:
    """Return the inversion time (ms) that nulls a tissue in :class:`InversionRecovery`: T1·ln(2 / (1 + e^(−TR/T1)))."""
    return t1 * math.log(2 / (1 + math.exp(-tr / t1)))


def flair_protocol(field_strength: float = 1.5) -> MRIProtocol:
    """Return the default protocol with a third image, FLAIR: T2-weighted, with an inversion pulse that nulls CSF.

    TR 9000 ms and TE 100 ms are usual values; the inversion time follows from the mean T1 of CSF in :data:`RELAXATION`.

    Raises:
        ValueError: a field strength without parameters.
    """
    default = MRIProtocol(field_strength)
    ti = nulling_time(RELAXATION[field_strength]["csf"].t1, 9000)
    return replace(default, sequences={**default.sequences, "FLAIR": InversionRecovery(tr=9000, ti=ti, te=100)})


def scan_mri(anatomy: Anatomy, protocol: MRIProtocol, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Scan a subject once with every sequence of the protocol.

    Args:
        anatomy: the tissues on the grid of the scan.
        protocol: the scan protocol.
        rng: source of this subject's parameters, the bias fields and the noise.

    Returns:
        One magnitude image per sequence, (D, H, W) float32, not negative.
    """
    parameters = draw_parameters(protocol, rng)
    grid = anatomy.grid
    texture = [np.exp(protocol.texture * smooth_field(grid, protocol.texture_mm, rng)) for _ in range(2)]
    white = RELAXATION[protocol.field_strength]["white_matter"]
    images = {}
    for name, sequence in protocol.sequences.items():
        clean = weighted(anatomy, sequence, parameters, *texture)
        clean *= bias_field(grid, protocol.bias, rng)
        reference = abs(float(sequence.signal(np.array(white.t1), np.array(white.t2), white.pd)))
        images[name] = rician(clean, reference / protocol.snr, rng)
    return images


def draw_parameters(protocol: MRIProtocol, rng: np.random.Generator) -> dict[str, Relaxation]:
    """Sample one subject's tissue parameters: log-normal around the table of the field strength."""
    table = RELAXATION[protocol.field_strength]
    shared = rng.normal(0.0, (protocol.t1_jitter, protocol.t2_jitter))
    factors = np.exp(shared + rng.normal(0.0, protocol.tissue_jitter, (len(table), 2)))
    return {
        name: Relaxation(tissue.t1 * t1, tissue.t2 * t2, tissue.pd)
        for (name, tissue), (t1, t2) in zip(table.items(), factors.tolist(), strict=True)
    }


def weighted(
    anatomy: Anatomy,
    sequence: Sequence,
    parameters: Mapping[str, Relaxation],
    t1_texture: np.ndarray | float = 1.0,
    t2_texture: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Return the noise-free image of a sequence: tissue signals, weighted by the fractions of each voxel.

    Args:
        anatomy: the tissues.
        sequence: computes the signal from T1, T2 and proton density.
        parameters: MRI parameters of each tissue in the anatomy.
        t1_texture, t2_texture: factors of T1 and T2, (D, H, W) or one number.

    Returns:
        (D, H, W) float32, signed for an inversion recovery.

    Raises:
        ValueError: a tissue of the anatomy has no parameters.
    """
    if unknown := [name for name in anatomy.tissues if name not in parameters]:
        raise ValueError(f"no MRI parameters for {', '.join(unknown)}; known: {', '.join(parameters)}")
    shape = anatomy.grid.shape
    t1_texture, t2_texture = (np.broadcast_to(np.float32(factor), shape) for factor in (t1_texture, t2_texture))
    image = np.zeros(shape, np.float32)
    for name, fraction in zip(anatomy.tissues, anatomy.fractions, strict=True):
        tissue, present = parameters[name], fraction > 0
        if tissue.pd and present.any():
            signal = sequence.signal(tissue.t1 * t1_texture[present], tissue.t2 * t2_texture[present], tissue.pd)
            image[present] += fraction[present] * signal
    return image


def bias_field(grid: Grid, amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """Sample a receive field, (D, H, W) float32: a smooth factor within 1 ± amplitude, the same on any grid."""
    # At most half a wave over a head or torso, like the field of an array of surface coils; tanh bounds the values.
    return 1 + np.float32(amplitude) * np.tanh(smooth_field(grid, BIAS_MM, rng))


def rician(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return the magnitude of an image with complex Gaussian noise: Rician (Gudbjartsson and Patz, MRM 34, 1995).

    Args:
        image: noise-free signal, any shape; its sign is lost in the magnitude.
        sigma: standard deviation of the noise in each of the two channels; 0 adds none.
        rng: source of the noise.

    Raises:
        ValueError: sigma is negative or not finite.
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"the standard deviation of noise must be a number from 0 on, got {sigma}")
    noise = rng.standard_normal((2, *image.shape), dtype=np.float32) * np.float32(sigma)
    return np.hypot(image + noise[0], noise[1]).astype(np.float32, copy=False)


def _check_times(short: float, tr: float) -> None:
    if not (0 <= short < tr < math.inf):
        raise ValueError(f"a sequence needs 0 <= TE, TI < TR in ms; got {short} and TR {tr}")
