"""python sample.py runs/digits                       64 pictures and a grid
python sample.py runs/digits --label 7 --num_images 10"""

from diffunet.cli.main import sample

if __name__ == "__main__":
    sample()
