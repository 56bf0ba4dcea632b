//! The command line of a stand-in, read and written in one place.

/// What a stand-in is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub namespace: String,
    pub pod: String,
    pub node: String,
    pub container: String,
    pub image: Option<String>,
    pub tcp: Vec<u16>,
    pub udp: Vec<u16>,
    /// Closed once every port listens, for whoever started this and waits.
    pub ready_fd: Option<i32>,
    pub run: Run,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Run {
    /// Until told to stop.
    #[default]
    Serving,
    /// Succeeds at once, as an init container does.
    Once,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    #[error("weft lab standin: unknown argument {0:?}")]
    Unknown(String),
    #[error("weft lab standin: {0} needs a value")]
    NoValue(String),
    #[error("weft lab standin: {0} {1:?} is not a port")]
    NoPort(String, String),
    #[error("weft lab standin: {0} {1:?} is not a descriptor above the standard streams")]
    NoDescriptor(String, String),
}

impl Options {
    pub fn parse(args: &[String]) -> Result<Self, UsageError> {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(flag) = args.next() {
            if flag == "--once" {
                options.run = Run::Once;
                continue;
            }
            let mut value = || args.next().cloned().ok_or_else(|| UsageError::NoValue(flag.clone()));
            match flag.as_str() {
                "--namespace" => options.namespace = value()?,
                "--pod" => options.pod = value()?,
                "--node" => options.node = value()?,
                "--container" => options.container = value()?,
                "--image" => options.image = Some(value()?),
                "--tcp" => options.tcp.push(port(flag, value()?)?),
                "--udp" => options.udp.push(port(flag, value()?)?),
                "--ready-fd" => options.ready_fd = Some(descriptor(flag, value()?)?),
                _ => return Err(UsageError::Unknown(flag.clone())),
            }
        }
        Ok(options)
    }

    /// The arguments that `parse` reads back as this.
    pub fn to_args(&self) -> Vec<String> {
        let mut args = Vec::new();
        let mut flag = |name: &str, value: String| args.extend([name.to_owned(), value]);
        flag("--namespace", self.namespace.clone());
        flag("--pod", self.pod.clone());
        flag("--node", self.node.clone());
        flag("--container", self.container.clone());
        if let Some(image) = &self.image {
            flag("--image", image.clone());
        }
        self.tcp.iter().for_each(|port| flag("--tcp", port.to_string()));
        self.udp.iter().for_each(|port| flag("--udp", port.to_string()));
        if let Some(fd) = self.ready_fd {
            flag("--ready-fd", fd.to_string());
        }
        if self.run == Run::Once {
            args.push("--once".to_owned());
        }
        args
    }
}

fn port(flag: &str, value: String) -> Result<u16, UsageError> {
    match value.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(UsageError::NoPort(flag.to_owned(), value)),
    }
}

fn descriptor(flag: &str, value: String) -> Result<i32, UsageError> {
    match value.parse() {
        Ok(fd) if fd > 2 => Ok(fd),
        _ => Err(UsageError::NoDescriptor(flag.to_owned(), value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let options = Options {
            namespace: "shop".into(),
            pod: "web-0".into(),
            node: "node1".into(),
            container: "c".into(),
            image: Some("nginx:1".into()),
            tcp: vec![80, 443],
            udp: vec![53],
            ready_fd: Some(3),
            run: Run::Once,
        };
        assert_eq!(Options::parse(&options.to_args()), Ok(options));
    }

    #[test]
    fn mistakes_are_named() {
        let parse = |args: &[&str]| {
            Options::parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
                .map_err(|e| e.to_string())
        };
        assert_eq!(parse(&["--tcp", "0"]), Err("weft lab standin: --tcp \"0\" is not a port".into()));
        assert_eq!(parse(&["--pod"]), Err("weft lab standin: --pod needs a value".into()));
        assert_eq!(parse(&["x"]), Err("weft lab standin: unknown argument \"x\"".into()));
    }
}
