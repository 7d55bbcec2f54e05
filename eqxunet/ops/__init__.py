from .conv import conv2d as conv2d
from .conv import conv2d_transpose as conv2d_transpose
from .depthwise import depthwise_conv2d as depthwise_conv2d
from .fused import conv2d_of_relu as conv2d_of_relu
from .fused import is_convolution as is_convolution
from .fused import relu_of_conv2d as relu_of_conv2d
from .window import Padding as Padding
