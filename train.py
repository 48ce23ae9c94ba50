"""python train.py                                        real handwritten digits, in a few minutes on a CPU
python train.py --config configs/cifar10.yaml          another configuration; --help explains every key
python train.py --resume runs/digits                   the same run goes on
accelerate launch train.py --config configs/cifar10.yaml   on all GPUs"""

from diffunet.cli.main import train

if __name__ == "__main__":
    train()
