#include "execution.h"
