"""Tables of residues and elements: radii, the chemical character of atoms, and groups that are no ligands."""

CHANNELS = ("heavy", "hydrophobic", "aromatic", "donor", "acceptor", "positive", "negative", "metal")
"""Properties of heavy atoms, the channels of a molecule on a grid, as in DeepSite (Jiménez et al. 2017, table 1):

- heavy: every heavy atom, the excluded volume;
- hydrophobic: carbon bonded to no nitrogen, oxygen or halogen;
- aromatic: carbon of an aromatic ring;
- donor: nitrogen or oxygen with hydrogen, and the sulfur of cysteine;
- acceptor: oxygen, nitrogen with a free pair, sulfur;
- positive: nitrogen of lysine and arginine; histidine is neutral at pH 7;
- negative: oxygen of carboxylates and phosphates;
- metal: see METALS.
"""
LETTERS = {"h": 1, "r": 2, "d": 3, "a": 4, "p": 5, "n": 6}
"""Index of the channel of each letter in SIDE_CHAINS and BACKBONE."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


BACKBONE = {"N": "d", "CA": "", "C": "", "O": "a", "OXT": "an"}
"""Atoms of each amino acid in the order of the PDB, with letters; the nitrogen of proline has no hydrogen."""
SIDE_CHAINS = {
    "ALA": "CB:h",
    "ARG": "CB:h CG:h CD NE:dp CZ NH1:dp NH2:dp",
    "ASN": "CB:h CG OD1:a ND2:d",
    "ASP": "CB:h CG OD1:an OD2:an",
    "CYS": "CB:h SG:da",
    "GLN": "CB:h CG:h CD OE1:a NE2:d",
    "GLU": "CB:h CG:h CD OE1:an OE2:an",
    "GLY": "",
    "HIS": "CB:h CG:r ND1:da CD2:r CE1:r NE2:da",
    "ILE": "CB:h CG1:h CG2:h CD1:h",
    "LEU": "CB:h CG:h CD1:h CD2:h",
    "LYS": "CB:h CG:h CD:h CE NZ:dp",
    "MET": "CB:h CG:h SD:a CE:h",
    "MSE": "CB:h CG:h SE:a CE:h",
    "PHE": "CB:h CG:hr CD1:hr CD2:hr CE1:hr CE2:hr CZ:hr",
    "PRO": "CB:h CG:h CD",
    "SER": "CB OG:da",
    "THR": "CB OG1:da CG2:h",
    "TRP": "CB:h CG:hr CD1:r CD2:hr NE1:d CE2:r CE3:hr CZ2:hr CZ3:hr CH2:hr",
    "TYR": "CB:h CG:hr CD1:hr CD2:hr CE1:hr CE2:hr CZ:r OH:da",
    "VAL": "CB:h CG1:h CG2:h",
}
"""Atoms of side chains in the order of the PDB, with the letters of their channels."""
CHARACTER = {
    (residue, name): "" if (residue, name) == ("PRO", "N") else letters
    for residue, chain in SIDE_CHAINS.items()
    for name, letters in [*BACKBONE.items(), *(atom.partition(":")[::2] for atom in chain.split())]
}
"""Letters of the channels of an atom, by residue and name."""
ORDER = {
    residue: ("N", "CA", "C", "O", *(atom.partition(":")[0] for atom in chain.split()))
    for residue, chain in SIDE_CHAINS.items()
}
"""Names of the heavy atoms of an amino acid in the order of the PDB, without OXT."""

NUCLEOTIDES = _names("A C G U I DA DC DG DT DU DI")
MODIFIED = _names("MSE SEP TPO PTR LLP CSO CSD CME OCS KCX PCA MLY M3L HYP CGU CSS CAS SMC")
"""Frequent amino acids of proteins that are changed after translation, for files that do not mark the polymer."""
POLYMER = NUCLEOTIDES | MODIFIED | frozenset(SIDE_CHAINS)

METALS = _names(
    "Li Be Na Mg Al K Ca Ti V Cr Mn Fe Co Ni Cu Zn Ga Rb Sr Y Mo Ru Rh Pd Ag Cd In Cs Ba La Sm Eu Gd Tb Yb W Re Os Ir "
    "Pt Au Hg Tl Pb U"
)
"""Elements of the channel `metal`."""

WATERS = _names("HOH DOD WAT H2O OH2 TIP TIP3 TP3 SOL")
IONS = _names(
    "LI NA K RB CS MG CA SR BA MN MN3 FE FE2 CO NI CU CU1 ZN CD HG AG AU PT PB Y YB GD SM TB EU LA AL CL BR IOD F "
    "SO4 PO4 PI 2HP HPO NO3 NO2 CO3 BCT NH4 SCN AZI CYN PER OXY OH O2 SO3 SUL VO4 ALF BEF MGF AF3 ARS O"
)
"""Metals, halides and small ions: they bind at most surfaces or belong to the protein's own site."""
BUFFERS = _names(
    # Cryoprotectants and precipitants, at 10 to 30 % of the crystallization medium
    "GOL EDO PGO PDO MPD MRD PEG PG4 PG5 PG6 PGE 1PE 2PE P6G PE3 PE4 PE5 PE6 PE7 PE8 XPE 15P 12P P33 7PE M2M ETE "
    "IPA EOH MOH BU3 BU1 DIO DMS DMF ACN "
    # Buffers and their counter-ions
    "ACT ACY ACM FMT CIT FLC TLA TAR MLI MLA MLT SIN OXL MES EPE TRS BTB B3P CAC IMD NHE CPS CXS BCN PIN TEA BO3 "
    # Reducing agents and detergents
    "BME DTT DTV TCE BOG BGL LDA LMT DDM HTG C8E OLC OLA PLM MYR SDS "
    # Atoms of unknown kind
    "UNX"
)
"""Molecules of the crystallization medium: where they lie says little about the protein's function."""
GLYCANS = _names("NAG NDG BMA MAN FUC FUL GAL GLA SIA XYS XYP")
"""Sugars of glycoproteins: no ligands where they are bonded to the protein."""

RADII = {"C": 1.7, "N": 1.55, "O": 1.52, "S": 1.8, "P": 1.8, "Se": 1.9, "F": 1.47, "Cl": 1.75, "Br": 1.85, "I": 1.98}
RADII |= {"B": 1.92, "Si": 2.1, "Na": 2.27, "Mg": 1.73, "K": 2.75, "Zn": 1.39, "Cu": 1.4, "Ni": 1.63, "Cd": 1.58}
RADII |= {"Hg": 1.55}
"""Van der Waals radii in Å (Bondi 1964; B by Mantina et al. 2009)."""
DEFAULT_RADIUS = 1.7
"""Van der Waals radius in Å of the other elements."""
COVALENT = {"C": 0.76, "N": 0.71, "O": 0.66, "S": 1.05, "P": 1.07, "Se": 1.2, "F": 0.57, "Cl": 1.02, "Br": 1.2}
COVALENT |= {"I": 1.39, "B": 0.84, "Si": 1.11}
"""Covalent radii in Å of the elements that form bonds here (Cordero et al. 2008)."""
BOND_TOLERANCE = 1.15
"""Atoms are bonded if their distance is at most this multiple of the sum of their covalent radii."""
