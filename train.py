"""python train.py                                        handwritten digits, in a few minutes on a CPU
python train.py --config configs/cifar10.yaml          another configuration; --help explains every key
python train.py --resume runs/digits                   resumes a run
accelerate launch train.py --config configs/cifar10.yaml   on all GPUs"""

from diffunet.__main__ import main

if __name__ == "__main__":
    main("train")
